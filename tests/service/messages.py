"""Messages that a device process sends, for tests of workers."""

from msgspec import UNSET

from peterrec.patches.identity import Digest, TaskRef
from peterrec.patches.registry.records import TaskEntry
from peterrec.service.predict.kinds.descriptor import UsedFields
from peterrec.service.protocol.messages import BundleEntry, KeyEntry, TableUpdate

DIGEST_A = Digest("a" * 64)
DIGEST_B = Digest("b" * 64)


def bundle_entry(
    handle: int, digest: Digest, kind: str = "classification", labels: tuple[str, ...] = ("F", "M")
) -> BundleEntry:
    return BundleEntry(handle, digest, kind, len(labels), labels, 0.5, "")


def full_update(
    epoch: int,
    bundles: list[BundleEntry] | None = None,
    tasks: list[TaskEntry] | None = None,
    keys: list[KeyEntry] | None = None,
) -> TableUpdate:
    return TableUpdate(epoch, 1, 1, True, bundles or [], tasks or [], [], [], keys or [])


def update(
    version: int,
    bundles: list[BundleEntry] | None = None,
    tasks: list[TaskEntry] | None = None,
    removed: list[Digest] | None = None,
    removed_tasks: list[TaskRef] | None = None,
    epoch: int = 1,
) -> TableUpdate:
    return TableUpdate(
        epoch,
        version,
        version,
        False,
        bundles or [],
        tasks or [],
        removed or [],
        removed_tasks or [],
    )


USED = UsedFields(
    used_items=1,
    unknown_items=0,
    unknown=[],
    truncated=False,
    cold=False,
    user_id=UNSET,
    titles=UNSET,
)
"""What answers to a history of one known item say of it."""
