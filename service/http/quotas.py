"""The quotas of tenants that hold for requests, each looked at before the work that it bounds."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from msgspec import UNSET
from starlette.types import Send

from peterrec.model.errors import Category
from peterrec.service.http.bound_tenant import BoundTenant
from peterrec.service.http.raw_route import Call
from peterrec.service.http.whole_answers import with_fields
from peterrec.service.predict.kinds import Prediction
from peterrec.service.predict.predictor import Predicted
from peterrec.service.protocol.quota_table import QuotaTable, ServedTenant

NOTHING_DONE = frozenset({Category.OVERLOADED, Category.UNAVAILABLE})
"""Refusals that cost the tenant's quotas nothing: it is not to blame, and got nothing."""


class Drawing(Protocol):
    """A prediction by any protocol: whose it is, and what it has drawn of its tenant's quotas.

    ``bound`` is the tenant if it has quotas for requests, and ``waiting_rows`` of it wait. ``rows``
    are known as soon as the call was decoded.
    """

    bound: BoundTenant | None
    waiting_rows: int

    @property
    def tenant(self) -> str:
        """The caller's tenant."""

    @property
    def rows(self) -> int:
        """The rows that were asked for."""


class TenantQuotas:
    """The tenants of a worker that have such quotas. Without a table there are none.

    Those that draw or admit raise RateExceeded. For any other tenant, all of them do
    nothing. Whatever answers a prediction calls ``draw`` or ``admit`` first, ``admit_rows`` when
    its rows are counted, and ``release`` at the end.
    """

    def __init__(self, table: QuotaTable | None = None) -> None:
        self._table = table
        self._cell = 0 if table is None else table.own_cell()
        self._bound: dict[str, BoundTenant] = {}

    def replace(self, tenants: Iterable[ServedTenant]) -> None:
        """Bound exactly these tenants from now on."""
        table = self._table
        if table is not None:
            self._bound = {
                each.tenant: BoundTenant(table, self._cell, each)
                for each in tenants
                if each.slot is not None
            }

    def draw(self, call: Drawing) -> None:
        """Draw a prediction from its tenant's quotas, before anything of its body is read."""
        bound = self._bound.get(call.tenant)
        if bound is not None:
            bound.draw_request()
            call.bound = bound

    def admit(self, call: Call) -> None:
        """Draw a prediction over HTTP, and let its answer have the fields."""
        self.draw(call)
        if call.bound is not None and call.bound.predict_policy:
            call.send = with_fields(call.send, call.bound.predict_fields)

    def admit_rows(self, call: Drawing, rows: int) -> None:
        """Draw a prediction's rows; raise RateExceeded, AtOnceExceeded or TooManyRows."""
        if call.bound is not None:
            call.bound.draw_rows(rows)
            call.waiting_rows = rows

    def release(self, call: Drawing, *, is_answered: bool) -> None:
        """End a prediction. If it was answered without ``admit_rows``, its rows are drawn now."""
        if call.bound is None:
            return
        if call.waiting_rows:
            call.bound.release(call.waiting_rows)
        elif is_answered:
            call.bound.charge_rows(call.rows)

    def give_back(self, call: Drawing) -> None:
        """Return what a prediction has drawn, since it was refused for another reason."""
        if call.bound is not None:
            call.bound.give_back(call.waiting_rows)

    def charge(self, call: Drawing, predicted: Predicted) -> None:
        """Draw the rows that a prediction needed for explanations, which ran already."""
        if call.bound is not None:
            rows = _explanation_rows(predicted)
            if rows:
                call.bound.charge_rows(rows)

    def draw_call(self, tenant: str) -> BoundTenant | None:
        """Draw any other call from its tenant's quotas; return the tenant if it has some."""
        bound = self._bound.get(tenant)
        if bound is not None:
            bound.draw_call()
        return bound

    def admit_call(self, tenant: str, send: Send) -> Send:
        """Draw any other call over HTTP; return how to send its answer."""
        bound = self.draw_call(tenant)
        return with_fields(send, bound.call_fields) if bound and bound.call_policy else send

    @contextmanager
    def stream(self, tenant: str) -> Iterator[None]:
        """Count a stream as long as it is open; raise AtOnceExceeded if there are too many."""
        bound = self._bound.get(tenant)
        if bound is None:
            yield
        else:
            with bound.stream():
                yield


def _explanation_rows(predicted: Predicted) -> int:
    answers = [each.answer for task in predicted.tasks for each in task.answers]
    found = [each.explanation for each in answers if isinstance(each, Prediction)]
    return sum([each.rows for each in found if each is not UNSET])
