"""Hints as somebody can follow them who has other names for the settings, or only some of them."""

import re
from collections.abc import Mapping

_SETTING = re.compile(r"`([a-z][a-z_]*)`")
_BETWEEN_SENTENCES = re.compile(r"(?<=[.;?]) ")


def hint_for(hint: str, names: Mapping[str, str]) -> str:
    """The hint with each setting as ``names`` spells it, without sentences on other settings."""
    sentences = _BETWEEN_SENTENCES.split(hint)
    known = [s for s in sentences if all(name in names for name in _SETTING.findall(s))]
    return _SETTING.sub(lambda found: names[found[1]], " ".join(known))
