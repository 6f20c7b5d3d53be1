"""The registry's Lua scripts. Each one is a single atomic step in Redis.

A script is the text of one ``.lua`` file of this folder, preceded by the files that it builds on:
``keys`` names its keys and its argument, ``marks`` reads the mark of a change, ``lineage`` says
which registry this is, ``prelude`` holds what every change does, and ``tenants`` what tenants use
of their quotas.
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
    "tenants",
    "key_uses",
    "availability",
    "identity",
    "webhooks",
    "webhook_states",
    "webhook_lease",
)
"""The keys that every script receives, in the order in which ``keys.lua`` names them."""

STAGED_NAMES = ("tasks", "keys", "changes", "refs", "tenants", "availability")
"""The keys of a whole registry that an import stages, in the order in which ``import.lua`` expects
them after ``KEY_NAMES``."""


_OF_CHANGES = ("keys", "marks", "lineage", "prelude")


def _joined(*names: str) -> str:
    folder = files(__name__)
    return "\n".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in names)


def _change(name: str) -> str:
    return _joined(*_OF_CHANGES, "tenants", name)


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
PUT_AVAILABILITY = _change("put_availability")
CLEAR_AVAILABILITY = _change("clear_availability")
CREATE_KEY = _change("create_key")
REVOKE_KEY = _change("revoke_key")
ROTATE_KEY = _change("rotate_key")
REVOKE_SECRET = _change("revoke_secret")
PUT_TENANT = _change("put_tenant")
DELETE_TENANT = _change("delete_tenant")
PUT_WEBHOOK = _change("put_webhook")
DELETE_WEBHOOK = _change("delete_webhook")
DISABLE_WEBHOOK = _change("disable_webhook")
NOTE_DELIVERY = _joined("keys", "note_delivery")
LEASE_WEBHOOKS = _joined("keys", "lease_webhooks")
COUNT_TENANT = _joined(*_OF_CHANGES, "count_tenant")
NOTE_USES = _joined("keys", "note_uses")

BEGIN_UPLOAD = _change("begin_upload")
FINISH_UPLOAD = _change("finish_upload")
RELEASE_UNUSED = _change("release_unused")
LIST_UNUSED = _change("list_unused")

# Reads are scripts too, because Redis refuses MULTI when it is short of memory.
READ_ALL = _joined("keys", "marks", "lineage", "read_all")
READ_CHANGES = _joined("keys", "marks", "lineage", "read_changes")
READ_RECORDS = _joined("keys", "marks", "lineage", "read_records")
READ_LINEAGE = _joined("keys", "marks", "lineage", "read_lineage")
READ_TASK = _joined("keys", "read_task")
READ_STORED_TASK = _joined("keys", "read_stored_task")
READ_REST = _joined("keys", "read_rest")
READ_TENANT = _joined("keys", "marks", "read_tenant")
READ_TENANTS = _joined("keys", "read_tenants")

EXCHANGE_SHARES = _joined("exchange_shares")

CLAIM_OUTCOMES = _joined("claim_outcomes")
REMEMBER_ANSWERS = _joined("remember_answers")
COUNT_HITS = _joined("count_hits")

STAGE_EVENTS = _joined("stage_events")
IMPORT = _joined(*_OF_CHANGES, "import")
ACCEPT = _joined(*_OF_CHANGES, "accept")
