"""Losses: Redis answers, but what it holds is no recorded continuation of what was known of it.

It was emptied, a replica without the last changes was promoted, an older dump was loaded, or the
address or the prefix names another registry. Whoever knows better must go on with that, and change
nothing (``docs/decisions/0164-a-lost-registry.md``).
"""

from dataclasses import dataclass

from peterrec.patches.errors import RegistryLost
from peterrec.patches.registry.records import Position


@dataclass(slots=True)
class Knowledge:
    """What a process knows of its registry; the process that follows it keeps this up to date.

    No change is made to a registry that does not hold ``position``. While ``loss`` is not empty,
    nothing is read either: it says what was lost.
    """

    position: Position | None = None
    loss: str = ""

    def check(self) -> None:
        """Raise RegistryLost while the registry is lost."""
        if self.loss:
            raise RegistryLost(self.loss)

    def document(self) -> dict[str, object]:
        """Return what scripts are told, as their argument ``known``."""
        known = self.position
        return {"known": known._asdict()} if known is not None and known.revision else {}


def loss(reason: str, known: Position | None, revision: int) -> RegistryLost:
    """Return the error for what a script reports; ``revision`` is the one that it found."""
    was = "" if known is None else f"; it was known at revision {known.revision}"
    return RegistryLost(f"the registry is lost: {_REASONS[reason].format(revision)}{was}.")


def vanished(tasks: int, keys: int, tenants: int) -> RegistryLost:
    """Return the error for what is gone although no change has removed it."""
    parts = [f"{tasks} tasks", f"{keys} API keys", *([f"{tenants} tenants"] if tenants else [])]
    return RegistryLost(
        f"the registry is lost: {', '.join(parts)} are gone, and no change has removed them."
    )


_REASONS = {
    "emptied": "Redis holds none at this address and prefix",
    "other": "Redis holds another one, at revision {}",
    "went_back": "Redis has gone back to revision {}",
    "forked": "Redis went back and went on from there, to revision {}",
}
"""What each reason means that ``lineage.lua`` gives."""
