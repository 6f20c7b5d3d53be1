"""Hints as somebody can follow them who has other names for the settings, or only some of them."""

import re
from collections.abc import Mapping

_SETTING = re.compile(r"`([a-z][a-z_]*)`")
_BETWEEN_SENTENCES = re.compile(r"(?<=[.;?]) ")

Names = Mapping[str, str | None]
"""Settings as the reader of a hint writes them; None for those that only others have."""


def hint_for(hint: str, names: Names, *, knows_others: bool = True) -> str:
    """The hint with each setting as ``names`` spells it, without sentences on others' settings.

    Other words in backticks, such as fields of the HTTP API, stay as they are, unless the reader
    knows none but ``names``.
    """
    unknown = "" if knows_others else None
    sentences = _BETWEEN_SENTENCES.split(hint)
    ours = [
        sentence
        for sentence in sentences
        if all(names.get(name, unknown) is not None for name in _SETTING.findall(sentence))
    ]
    return _SETTING.sub(lambda found: names.get(found[1]) or found[0], " ".join(ours))
