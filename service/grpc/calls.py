"""What every gRPC call has in common: its head, its key, its message, its time, and its refusal."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from google.protobuf.message import DecodeError
from grpc.aio import EOF, ServicerContext

from peterrec.model.errors import PeterRecError
from peterrec.patches.identity import TenantId
from peterrec.service.errors import InternalError, MalformedRequest, RequestTimedOut, outcome_of
from peterrec.service.grpc.messages import Message
from peterrec.service.grpc.statuses import details_of, metadata_of, status_of
from peterrec.service.http.asgi import RequestHead
from peterrec.service.http.auth import Principal
from peterrec.service.http.bound_tenant import BoundTenant
from peterrec.service.http.context import PredictContext
from peterrec.service.http.quotas import NOTHING_DONE
from peterrec.service.http.seeing import Finished
from peterrec.service.telemetry.events import RequestFinished
from peterrec.service.telemetry.timeline import mark_read

log = structlog.get_logger()

PROTOCOL = "open_inference_grpc"
"""Label ``protocol`` of these calls in the metrics."""

MESSAGE_TIMEOUT_S = 10.0
"""Seconds in which the message of a call must arrive that is no prediction."""

CANCEL_S = 0.05
"""Seconds after the end of a stream without a message in which its cancellation is noticed: the one
follows from the other, but comes later."""

Handler = Callable[["GrpcCall"], Awaitable[Message]]
"""Answers a call with a message, or raises one of our errors."""


class GrpcCall:
    """One call. ``tenant``, ``task`` and ``rows`` are set for the metrics of predictions.

    ``bound`` is the tenant if it has quotas for requests, and ``waiting_rows`` counts in them.
    """

    def __init__(
        self, predictions: PredictContext, request: Message, context: "ServicerContext[Any, Any]"
    ) -> None:
        # Any: messages are bytes here
        self.predictions = predictions
        self._request = request
        self._context = context
        self.head = _head_of(context)
        self.started = time.monotonic()
        self.tenant = TenantId("")
        self.task: str | None = None
        self.rows = 0
        self.bound: BoundTenant | None = None
        self.waiting_rows = 0
        self._timeline = predictions.seeing.begin(self.head, self.started)

    @property
    def peer(self) -> str:
        """The address of the client, of ``ipv4:127.0.0.1:50000`` for instance."""
        kind, _, place = str(self._context.peer()).partition(":")
        return place.rpartition(":")[0] if kind.startswith("ipv") else kind

    async def authenticate(self) -> Principal:
        """Return the caller of a call that is no prediction, and draw it from its quotas."""
        principal = await self.identify()
        self.predictions.quotas.draw_call(principal.tenant)
        return principal

    async def identify(self) -> Principal:
        """Return the caller, by the metadata ``authorization`` or ``x-api-key``."""
        identify = self.predictions.authenticator.identify
        principal = await identify(self.head.authorization, self.head.api_key)
        self.tenant = principal.tenant
        return principal

    def limit_s(self) -> float:
        """Return the seconds that a prediction may take: by the client's deadline if it has one."""
        left_s, of_server = self._context.time_remaining(), self.predictions
        if left_s is None:
            return self.head.timeout_s(of_server.request_timeout_ms, of_server.timeout_limit_ms)
        return float(min(left_s, of_server.timeout_limit_ms / 1000))

    async def read(self, limit_s: float = MESSAGE_TIMEOUT_S) -> Message:
        """Read the message of the call, within a time."""
        try:
            async with asyncio.timeout(limit_s):
                data = await self._context.read()
        except TimeoutError as error:
            raise RequestTimedOut("message", limit_s) from error
        mark_read()
        if data is EOF:
            await asyncio.sleep(CANCEL_S)
            raise MalformedRequest("the call has no message.", hint="Send one.")
        try:
            return self._request.FromString(data)
        except DecodeError as error:
            raise MalformedRequest(
                f"the message is no {self._request.DESCRIPTOR.full_name}.",
                hint="Use a client of the Open Inference Protocol.",
            ) from error

    async def send(self, answer: Message) -> None:
        """Send the answer."""
        self._context.set_trailing_metadata((("x-request-id", self.head.request_id),))
        await self._context.write(answer.SerializeToString())

    async def refuse(self, error: PeterRecError) -> None:
        """End the call with an error."""
        metadata = metadata_of(error, self.head.request_id)
        await self._context.abort(status_of(error), details_of(error), metadata)

    def has_expired(self) -> bool:
        """Whether the client's deadline has passed."""
        left_s = self._context.time_remaining()
        return left_s is not None and left_s <= 0

    def note(self, outcome: str) -> None:
        """Count a prediction by its outcome."""
        if self.task is not None:
            duration_s = time.monotonic() - self.started
            trace_id = self._tell(self.task, outcome)
            self.predictions.emit(
                RequestFinished(
                    self.tenant,
                    self.task,
                    outcome,
                    duration_s,
                    self.rows,
                    protocol=PROTOCOL,
                    trace_id=trace_id,
                )
            )

    def _tell(self, task: str, outcome: str) -> str:
        """Tell where the time went; return the id of the trace, if there is one."""
        if self._timeline is None:
            return ""
        about = Finished(self.tenant, (task,), self.rows, PROTOCOL, outcome)
        return self.predictions.seeing.end(self._timeline, self.head, "ModelInfer", about)


async def run(call: GrpcCall, handle: Handler) -> None:
    """Run a call: send its answer or its error. A client that leaves cancels it."""
    is_answered = False
    try:
        await call.send(await handle(call))
    except asyncio.CancelledError:
        call.note("deadline" if call.has_expired() else "client_left")
        raise
    except PeterRecError as error:
        if error.category in NOTHING_DONE:
            call.predictions.quotas.give_back(call)
        call.note(outcome_of(error))
        call.predictions.refusals.count_error(error, call.peer, call.head.request_id)
        await call.refuse(error)
    except Exception:
        # The last guard of a call: the caller gets our form of an error for any mistake of ours.
        log.exception("request_failed", request_id=call.head.request_id)
        call.note("error")
        await call.refuse(InternalError())
    else:
        is_answered = True
        call.note("ok")
    finally:
        call.predictions.quotas.release(call, is_answered=is_answered)


def _head_of(context: "ServicerContext[Any, Any]") -> RequestHead:
    # Any: messages are bytes here
    metadata = context.invocation_metadata() or ()
    headers = [
        (name.encode(), value if isinstance(value, bytes) else value.encode("latin-1", "replace"))
        for name, value in metadata
    ]
    return RequestHead.read({"headers": headers})
