"""The registry's Lua scripts. Each one is a single atomic step in Redis.

A script is the text of one ``.lua`` file of this folder, preceded by the files that it builds on:
``keys`` names its keys and its argument, ``prelude`` holds what every change does, and ``marks``
reads the mark of a change.
"""

from importlib.resources import files

KEY_NAMES = (
    "revision",
    "tasks",
    "changes",
    "keys",
    "blobs",
    "refs",
    "unused",
    "garbage",
    "request",
    "versions",
    "states",
)
"""The keys that every script receives, in the order in which ``keys.lua`` names them."""

STAGED_NAMES = ("tasks", "keys", "changes", "refs")
"""The keys of a whole registry that an import stages, in the order in which ``import.lua`` expects
them after ``KEY_NAMES``."""


def _joined(*names: str) -> str:
    folder = files(__name__)
    return "\n".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in names)


def _change(name: str) -> str:
    return _joined("keys", "prelude", name)


ADD_VERSION = _change("add_version")
DELETE_VERSION = _change("delete_version")
SET_ALIAS = _change("set_alias")
DELETE_ALIAS = _change("delete_alias")
ROLLBACK = _change("rollback")
PUT_TASK = _change("put_task")
DELETE_TASK = _change("delete_task")
PUT_TRAFFIC = _change("put_traffic")
CLEAR_TRAFFIC = _change("clear_traffic")
TRIP_GUARD = _change("trip_guard")
CREATE_KEY = _change("create_key")
REVOKE_KEY = _change("revoke_key")

BEGIN_UPLOAD = _change("begin_upload")
FINISH_UPLOAD = _change("finish_upload")
RELEASE_UNUSED = _change("release_unused")
LIST_UNUSED = _change("list_unused")

# Reads are scripts too, because Redis refuses MULTI when it is short of memory.
READ_ALL = _joined("keys", "marks", "read_all")
READ_CHANGES = _joined("keys", "marks", "read_changes")
READ_TASK = _joined("keys", "read_task")
READ_STORED_TASK = _joined("keys", "read_stored_task")
READ_REST = _joined("keys", "read_rest")

STAGE_EVENTS = _joined("stage_events")
IMPORT = _joined("keys", "prelude", "marks", "import")
