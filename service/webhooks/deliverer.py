"""Tells webhooks of changes: at least once, in the order of the revisions, one replica at a time.

The replica that holds the lease in Redis has a task for each webhook, so a slow receiver holds up
nobody else. It sends only while the lease outlasts the attempt: a replica that was stopped for a
while does not send beside its successor. The cursor moves when a receiver has taken a message; a
replica that dies in between has its successor send that message again, under the same id.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress

import structlog
from msgspec.structs import replace
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential_jitter

from peterrec.model.errors import PeterRecError
from peterrec.patches.registry.records import RegistryEvent
from peterrec.patches.registry.registry import Registry
from peterrec.patches.registry.webhooks import DeliveryState, Webhook
from peterrec.service.errors import WebhookFailed
from peterrec.service.http.asgi import encode_json
from peterrec.service.http.views.audit import AuditEntry
from peterrec.service.telemetry.events import Emit, WebhookTried
from peterrec.service.webhooks.sender import TIMEOUT_S, HookSender

log = structlog.get_logger()

LEASE_S = 12.0
"""Seconds for which the lease lasts: an attempt, a few renewals, and what is left in between."""

RENEW_S = 3.0
"""Seconds between two renewals, and between two looks at whether it is free."""

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 300.0
"""Seconds until a failed attempt is repeated: doubled each time, and up to the first by chance."""

RETRY_S = 1.0
"""Seconds until the registry is asked again after an error."""

PAGE = 500
"""Changes that are read at a time."""

KEPT = 2000
"""Changes that are kept in memory for webhooks that are up to date."""

WAIT_S = 2.0
"""Seconds of one wait for the next change."""

NOBODY_PAUSE_S = 1.0
"""Seconds between two looks at the changes while there is no webhook: it would otherwise take the
supervisor 1.6 ms of each registration to find nobody to tell."""

LEAVE_TIMEOUT_S = 1.0
"""Seconds that a stop waits for Redis."""

AT_ONCE_OF_TENANT, AT_ONCE = 2, 256
"""Attempts that run at the same time, of one tenant and of all."""

NOTED_EVERY = 500
"""Changes of others after which a cursor is noted: without it, a successor reads them again."""


class Ended(Exception):
    """The webhook was deleted, put again or disabled, or the lease is another replica's."""


class Trail:
    """The changes after any cursor, of which the newest are in memory."""

    def __init__(self, registry: Registry) -> None:
        self._feed = registry.feed
        self._newest: deque[RegistryEvent] = deque(maxlen=KEPT)
        self._changed = asyncio.Event()
        self.revision = 0

    async def look(self, wait_s: float) -> bool:
        """Wait for changes and read them; True if there are some, or the registry is another."""
        found = await self._feed.wait_for_change(self.revision, wait_s)
        if found == self.revision:
            return False
        events = await self._feed.events(self.revision, PAGE) if found > self.revision else ()
        expected = self.revision + 1
        if not events or events[0].revision != expected:
            self._newest.clear()
        self._newest.extend(events)
        self.revision = events[-1].revision if events else found
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        return True

    async def after(self, cursor: int) -> Sequence[RegistryEvent]:
        """Return the next changes after a cursor; waits until there is one."""
        while cursor >= self.revision:
            await self._changed.wait()
        if self._newest and self._newest[0].revision <= cursor + 1:
            return [event for event in self._newest if event.revision > cursor][:PAGE]
        return await self._feed.events(cursor, PAGE)


class WebhookDeliverer:
    """Delivers as long as this replica holds the lease. Lives on one event loop.

    ``owner`` names the replica, and ``give_up_s`` is how long a webhook may fail in a row.
    """

    def __init__(
        self, registry: Registry, sender: HookSender, emit: Emit, owner: str, give_up_s: float
    ) -> None:
        self._registry = registry
        self._hooks = registry.webhooks
        self._sender = sender
        self._emit = emit
        self._owner = owner
        self._give_up_s = give_up_s
        self._leased_until = float("-inf")
        self._trail = Trail(registry)
        self._tasks: dict[Webhook, asyncio.Task[None]] = {}
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._of_tenant: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(AT_ONCE_OF_TENANT)
        )

    async def run(self) -> None:
        """Deliver until cancelled; then give the lease back."""
        keeping = asyncio.create_task(self._keep_lease())
        try:
            while True:
                try:
                    await self._follow()
                except PeterRecError as error:
                    log.info("webhooks_wait", code=error.code)
                except Exception as error:
                    # One mistake must not end the deliveries of all tenants for good.
                    log.error("webhooks_failed", exc_info=error)
                await asyncio.sleep(RETRY_S)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await self._stop()

    @property
    def is_leading(self) -> bool:
        """True while the lease outlasts an attempt that begins now."""
        return time.monotonic() + TIMEOUT_S < self._leased_until

    async def _keep_lease(self) -> None:
        while True:
            asked_at = time.monotonic()
            try:
                has_it = await self._hooks.lease(self._owner, LEASE_S)
            except PeterRecError:
                pass  # it lasts as long as it was given
            except Exception as error:
                log.error("lease_failed", exc_info=error)
            else:
                self._leased_until = asked_at + LEASE_S if has_it else float("-inf")
            await asyncio.sleep(RENEW_S)

    async def _follow(self) -> None:
        """Follow the changes while leading; one task for each webhook sends them."""
        if not self.is_leading:
            await self._end_all()
            return
        if not self._tasks:  # another replica may have led meanwhile
            self._trail = Trail(self._registry)
            self._trail.revision = await self._registry.feed.revision()
            await self._reconcile()
        while self.is_leading:
            if not self._tasks:
                await asyncio.sleep(NOBODY_PAUSE_S)
            if await self._trail.look(WAIT_S) or any(t.done() for t in self._tasks.values()):
                await self._reconcile()

    async def _reconcile(self) -> None:
        """Have a task for each webhook that is not disabled.

        A task has ended by itself if the lease was nearly over; it begins anew from its cursor.
        """
        wanted = {hook for hook in await self._hooks.all() if hook.disabled_at is None}
        over = {
            hook: task for hook, task in self._tasks.items() if hook not in wanted or task.done()
        }
        await self._end(over)
        for hook in wanted - self._tasks.keys():
            self._tasks[hook] = asyncio.create_task(self._serve(hook))

    async def _serve(self, hook: Webhook) -> None:
        """Tell one webhook of every change, until it ends."""
        while True:
            try:
                await self._deliver_all(hook)
            except Ended:
                return
            except PeterRecError as error:
                log.info("webhook_waits", tenant=hook.tenant, webhook=hook.name, code=error.code)
            except Exception as error:
                log.error("webhook_failed", tenant=hook.tenant, webhook=hook.name, exc_info=error)
            await asyncio.sleep(RETRY_S)

    async def _deliver_all(self, hook: Webhook) -> None:
        state = await self._hooks.state(hook)
        noted = state.cursor
        while True:
            for event in await self._trail.after(state.cursor):
                if event.revision > state.cursor + 1:
                    state = await self._deliver(hook, state, event.revision - 1, _reset(event))
                if event.tenant in (None, hook.tenant):
                    state = await self._deliver(hook, state, event.revision, _body(event))
                    noted = state.cursor
                else:
                    state = replace(state, cursor=event.revision)
            if state.cursor - noted >= NOTED_EVERY:
                await self._note(hook, state)
                noted = state.cursor

    async def _deliver(
        self, hook: Webhook, state: DeliveryState, revision: int, body: bytes
    ) -> DeliveryState:
        """Send one message until the receiver takes it; return the state after it, as noted."""
        message_id = f"{hook.tenant}.{hook.name}.{revision}"
        attempts = AsyncRetrying(
            wait=wait_exponential_jitter(FIRST_WAIT_S, LONGEST_WAIT_S, jitter=FIRST_WAIT_S),
            retry=retry_if_exception_type(WebhookFailed),
        )
        async for attempt in attempts:
            with attempt:
                try:
                    await self._attempt(hook, message_id, body)
                except WebhookFailed as error:
                    state = await self._failed(hook, state, error)
                    raise
        state = DeliveryState(revision, delivered=state.delivered + 1)
        await self._note(hook, state)
        self._emit(WebhookTried("delivered"))
        return state

    async def _attempt(self, hook: Webhook, message_id: str, body: bytes) -> None:
        async with self._of_tenant[hook.tenant], self._at_once:
            if not self.is_leading:
                raise Ended
            await self._sender.send(hook, message_id, body)

    async def _failed(
        self, hook: Webhook, state: DeliveryState, error: WebhookFailed
    ) -> DeliveryState:
        """Note a failure; disable the webhook, and raise Ended, if there were failures for long."""
        now_ms = int(1000 * time.time())
        state = replace(
            state,
            failures=state.failures + 1,
            failing_since_ms=state.failing_since_ms or now_ms,
            last_error=error.reason,
        )
        await self._note(hook, state)
        self._emit(WebhookTried("failed"))
        if error.is_final or now_ms - state.failing_since_ms > 1000 * self._give_up_s:
            reason = f"{state.failures} attempts failed, the last with {error.reason}"
            if await self._hooks.disable(hook, reason):
                self._emit(WebhookTried("disabled"))
                log.warning(
                    "webhook_disabled", tenant=hook.tenant, webhook=hook.name, reason=reason
                )
            raise Ended
        return state

    async def _note(self, hook: Webhook, state: DeliveryState) -> None:
        if not await self._hooks.note(hook, state, self._owner):
            raise Ended

    async def _end_all(self) -> None:
        await self._end(dict(self._tasks))

    async def _end(self, tasks: dict[Webhook, asyncio.Task[None]]) -> None:
        for hook, task in tasks.items():
            task.cancel()
            del self._tasks[hook]
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _stop(self) -> None:
        await self._end_all()
        if self._leased_until > time.monotonic():
            with suppress(PeterRecError, TimeoutError):  # it ends by itself
                async with asyncio.timeout(LEAVE_TIMEOUT_S):
                    await self._hooks.lease(self._owner, 0)


def _body(event: RegistryEvent) -> bytes:
    """Return a change as the audit trail shows it; of an import, nothing of other tenants."""
    entry = AuditEntry.of(event)
    if event.tenant is None:
        entry = entry.model_copy(update={"note": None})
    return encode_json(entry.model_dump(mode="json", exclude_none=True))


def _reset(event: RegistryEvent) -> bytes:
    """Say that changes before this one were lost to the webhook: the trail did not keep them."""
    return encode_json({"action": "reset", "revision": event.revision - 1})
