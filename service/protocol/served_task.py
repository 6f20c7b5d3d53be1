"""The version that answers a request: prod, the user's canary, or one that is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import msgspec

from peterrec.patches.identity import Digest, TaskRef, format_digest
from peterrec.patches.registry.availability import Availability
from peterrec.patches.registry.traffic import Traffic
from peterrec.service.protocol.messages import BundleEntry


class Role(StrEnum):
    """The reason why a version computes an answer."""

    PROD = "prod"
    CANARY = "canary"
    SHADOW = "shadow"
    PINNED = "pinned"


class ServedTask(msgspec.Struct, frozen=True):
    """A task resolved to one version: all that a request needs until its answer is encoded.

    ``alias`` is the alias that named the version, or None. ``split`` is the task's traffic, or None
    if it has none or the request asked for a certain version. ``availability`` is the list of the
    task's items that are to be had, or not; None if all are. ``is_sensitive`` is what its owner
    says.
    """

    tenant: str
    task: str
    version: int
    alias: str | None
    bundle: BundleEntry
    role: Role = Role.PROD
    split: "Split | None" = None
    availability: Availability | None = None
    is_sensitive: bool = False

    @property
    def digest(self) -> str:
        """The bundle's digest as callers see it, with its algorithm."""
        return format_digest(Digest(self.bundle.digest))


class Route(NamedTuple):
    """The version that answers one history, and those that compute it only to be compared."""

    answering: ServedTask
    shadowing: tuple[ServedTask, ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """A task's traffic, and its canaries and shadows as served.

    ``revision`` names the traffic in everything that is counted for it.
    """

    ref: TaskRef
    traffic: Traffic
    revision: int
    canaries: Mapping[Digest, ServedTask]
    shadows: tuple[ServedTask, ...]

    def route(self, prod: ServedTask, user: bytes) -> Route:
        """Choose the version of this user.

        If answers are compared, prod also computes the histories that a canary answers.
        """
        chosen = self.traffic.choose(self.ref, user)
        if chosen is None:
            return Route(prod, self.shadows)
        answering = self.canaries[chosen]
        if not self._is_compared:
            return Route(answering)
        others = (each for each in self.shadows if each.bundle.digest != chosen)
        return Route(answering, (prod, *others))

    @property
    def _is_compared(self) -> bool:
        guard = self.traffic.guard
        return bool(self.shadows) or (guard is not None and guard.max_divergence is not None)
