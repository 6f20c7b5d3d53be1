"""Find a task's version by number, digest or alias, as callers name it."""

from peterrec.patches.errors import AliasNotFound, InvalidDigest, VersionNotFound
from peterrec.patches.identity import TaskId, TenantId, parse_digest
from peterrec.patches.registry.records import TaskDetail, VersionRecord
from peterrec.patches.registry.registry import Registry
from peterrec.service.predict.task_table import MAX_DIGITS


async def find_version(
    registry: Registry, tenant: TenantId, task: TaskId, text: str
) -> VersionRecord:
    """Read the version with this number or digest; raise VersionNotFound if there is none."""
    return _by_number_or_digest(await registry.get_task(tenant, task), text)


def pick_version(detail: TaskDetail, name: int | str) -> VersionRecord:
    """Pick the version with this number or digest, or the one that this alias names."""
    text = str(name)
    target = detail.record.aliases.get(text)
    if target is not None and not text.isdecimal():
        text = str(target.version)
    try:
        return _by_number_or_digest(detail, text)
    except InvalidDigest:
        raise AliasNotFound(detail.record.task, text[:128]) from None


def _by_number_or_digest(detail: TaskDetail, text: str) -> VersionRecord:
    if text.isdecimal():
        number = int(text) if len(text) <= MAX_DIGITS else 0  # no version has the number 0
        found = [record for record in detail.versions if record.version == number]
    else:
        wanted = parse_digest(text)
        found = [record for record in detail.versions if record.digest == wanted]
    if found:
        return found[0]
    raise VersionNotFound(detail.record.task, text[:128])
