"""Who answers a request: what prod names, a canary by its user, or the version that it asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import msgspec

from peterrec.patches.identity import Digest, TaskRef, format_digest
from peterrec.patches.registry.traffic import Traffic
from peterrec.service.protocol.messages import BundleEntry


class Role(StrEnum):
    """Why a version computes an answer."""

    PROD = "prod"
    CANARY = "canary"
    SHADOW = "shadow"
    PINNED = "pinned"


class ServedTask(msgspec.Struct, frozen=True):
    """A task resolved to one version: all that a request needs until its answer is encoded.

    ``alias`` is the name by which the version was found, if it was by one. ``split`` is the task's
    traffic, if the request did not ask for a version of its own.
    """

    tenant: str
    task: str
    version: int
    alias: str | None
    bundle: BundleEntry
    role: Role = Role.PROD
    split: "Split | None" = None

    @property
    def digest(self) -> str:
        """The bundle's digest as shown outside."""
        return format_digest(Digest(self.bundle.digest))


class Cast(NamedTuple):
    """Who answers one history, and who computes it too without answering."""

    answering: ServedTask
    silent: tuple[ServedTask, ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """A task's traffic and its versions beside prod; ``revision`` names it in all that is seen."""

    ref: TaskRef
    traffic: Traffic
    revision: int
    canaries: Mapping[Digest, ServedTask]
    shadows: tuple[ServedTask, ...]

    def cast(self, prod: ServedTask, user: bytes) -> Cast:
        """The version of this user. Prod computes a canary's histories too if they are compared."""
        chosen = self.traffic.choose(self.ref, user)
        if chosen is None:
            return Cast(prod, self.shadows)
        answering = self.canaries[chosen]
        if not self._is_compared:
            return Cast(answering)
        others = (each for each in self.shadows if each.bundle.digest != chosen)
        return Cast(answering, (prod, *others))

    @property
    def _is_compared(self) -> bool:
        guard = self.traffic.guard
        return bool(self.shadows) or (guard is not None and guard.max_divergence is not None)
