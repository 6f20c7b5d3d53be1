"""The last answers to users, for callers who tell outcomes by user; Redis has them for a day.

A request pays for a dictionary's entry. Four times a second a worker sends what came together; what
Redis can't take is lost, as it is no more than a hint for the metrics.
"""

import asyncio
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from peterrec.model.errors import PeterRecError
from peterrec.patches.identity import TenantId
from peterrec.patches.registry.outcomes import OutcomeStore
from peterrec.service.predict.canary import Answered
from peterrec.service.predict.feedback import SECRET_BYTES, PredictionIds, with_id

SEND_INTERVAL_S = 0.25

SECRET_INTERVAL_S = 30.0
"""Seconds between two looks at the registry's secret, which is another one after a loss."""

MOST_WAITING = 2000
"""Users of a tenant whose answers wait to be sent, so 8,000 a second: further ones are left out."""

USERS_AT_ONCE = 250
"""Users of one script, which blocks Redis for a fraction of a millisecond."""


class RememberedAnswers:
    """Names answers by ids, and remembers those of users if that is asked for.

    Lives on the event loop, in which ``run`` keeps it up to date.
    """

    def __init__(self, ids: PredictionIds, outcomes: OutcomeStore) -> None:
        self.ids = ids
        self._outcomes = outcomes
        self._waiting: dict[TenantId, dict[str, str]] = {}
        self._own_secret = secrets.token_bytes(SECRET_BYTES)
        self._looked_at = float("-inf")

    def name(
        self, answered: Answered, user_id: str | int | None, *, is_shown: bool, may_keep: bool
    ) -> Answered:
        """Return an answer, with its id if that ``is_shown``; keep that if it ``may_keep``."""
        prediction_id = self.ids.of(answered)
        if may_keep and prediction_id is not None and user_id is not None:
            assert answered.by is not None
            self._keep(answered.by.tenant, answered.by.task, user_id, prediction_id)
        return with_id(answered, prediction_id) if is_shown else answered

    async def recall(
        self, tenant: TenantId, task: str, users: Sequence[str | int]
    ) -> list[str | None]:
        """Return the ids of the last answers to users of a task; None where none is known.

        RegistryUnavailable if Redis is away.
        """
        if self.ids.secret is None:
            return [None] * len(users)
        await self._send(tenant, self._waiting.pop(tenant, {}))
        marks = [self.ids.mark_of_user(tenant, task, user) or "" for user in users]
        return await self._outcomes.recall(tenant, marks)

    async def claim(self, tenant: TenantId, marks: Sequence[str]) -> list[bool]:
        """Say of which predictions no outcome was told before; from now on it was."""
        return await self._outcomes.claim(tenant, marks)

    async def look_for_secret(self) -> None:
        """Sign with the registry's secret; with the one before while that can't be read."""
        with suppress(PeterRecError):
            known = self.ids.secret or self._own_secret
            self.ids.secret = await self._outcomes.secret(known)
            self._looked_at = time.monotonic()

    async def run(self) -> None:
        """Send what came together, and follow the registry's secret, until it is cancelled."""
        while True:
            if time.monotonic() - self._looked_at >= SECRET_INTERVAL_S:
                await self.look_for_secret()
            waiting, self._waiting = self._waiting, {}
            for tenant, answers in waiting.items():
                with suppress(PeterRecError):
                    await self._send(tenant, answers)
            await asyncio.sleep(SEND_INTERVAL_S)

    def _keep(self, tenant: str, task: str, user_id: str | int, prediction_id: str) -> None:
        user = self.ids.mark_of_user(tenant, task, user_id)
        waiting = self._waiting.setdefault(TenantId(tenant), {})
        if user is not None and (len(waiting) < MOST_WAITING or user in waiting):
            waiting[user] = prediction_id

    async def _send(self, tenant: TenantId, answers: Mapping[str, str]) -> None:
        for part in _parts(answers):
            await self._outcomes.remember(tenant, part)


def _parts(answers: Mapping[str, str]) -> Iterator[dict[str, str]]:
    items = list(answers.items())
    for at in range(0, len(items), USERS_AT_ONCE):
        yield dict(items[at : at + USERS_AT_ONCE])
