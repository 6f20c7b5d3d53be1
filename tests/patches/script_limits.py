"""The limits that the Lua scripts define, read from their files."""

import re
from importlib.resources import files


def script_limit(script: str, name: str) -> int:
    """Return the number in the line ``local NAME = number`` of a script's file."""
    text = (files("peterrec.patches.registry.scripts") / f"{script}.lua").read_text("utf-8")
    (number,) = re.findall(rf"^local {name} = (\d+)$", text, re.MULTILINE)
    return int(number)


EVENTS_KEPT = script_limit("prelude", "EVENTS_KEPT")
STATES_KEPT = script_limit("prelude", "STATES_KEPT")
MAX_CHANGES = script_limit("read_changes", "MAX_CHANGES")
