"""Request bodies, and the options that callers give."""

import operator
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, TypedDict

import msgspec
from msgspec import Struct

from peterrec_client.kinds import ItemId

UnknownItems = Literal["drop", "map", "error"]
"""How history items outside the backbone's vocabulary are treated."""


class Explain(Struct, frozen=True, omit_defaults=True):
    """What an explanation names: the ``items`` that moved an output most, 1 to 100.

    ``outputs``: those that the answer rests on (``answer``), or ``all`` labels or tags. ``newest``:
    look at this many different items only, the newest ones.
    """

    items: int
    outputs: Literal["answer", "all"] = "answer"
    newest: int | None = None


Value = str | int | float | bool


class Condition(Struct, frozen=True, omit_defaults=True, rename={"in_": "in", "not_": "not"}):
    """What an attribute of a ranking's items must be; all that is given must hold.

    ``eq`` and ``in_``: equal to the value, or to one of them; of a list, that it has it, or one.
    ``not_``: none of these. ``all``: a list that has all of these. ``gt``, ``gte``, ``lt`` and
    ``lte`` bound numbers and times. ``exists``: whether the item has a value; without one, it
    passes only ``not_`` and ``exists=False``.
    """

    eq: Value | None = None
    in_: Sequence[Value] | None = None
    not_: Value | Sequence[Value] | None = None
    all: Sequence[Value] | None = None
    gt: Value | None = None
    gte: Value | None = None
    lt: Value | None = None
    lte: Value | None = None
    exists: bool | None = None


Where = Mapping[str, Value | Sequence[Value] | Condition | Mapping[str, object]]
"""Conditions on attributes by their names: a value, several of which one must be there, or more."""


class CallOptions(TypedDict, total=False):
    """Keywords of every prediction. For one that is left out, the server's default applies.

    ``top_k``: how many items a ranking returns, 1 to 1000 (default 10). ``exclude_seen``: whether
    a ranking leaves out the history's items (default: yes). ``unknown_items``: whether items
    outside the backbone's vocabulary are left out (``drop``, the default), read as UNK (``map``) or
    refused (``error``). ``version``: the version that answers instead of prod and its canaries, by
    number, digest or alias. ``explain``: how many items of the history the answer names that moved
    it most (default 0), or an ``Explain``; each different item costs the server a row.
    ``where``: the items that a ranking may return, by attributes that its bundle has.
    ``titles``: whether answers have display names, if the bundle does. ``prediction_ids``: whether
    answers have an id for ``Client.feedback``. ``remember``: whether the answer is remembered for
    its ``user_id``, for ``Client.feedback_of_users``. ``timeout_s``: seconds for the whole call
    including retries, instead of the client's.
    """

    top_k: int | None
    exclude_seen: bool | None
    unknown_items: UnknownItems | None
    version: int | str | None
    explain: Explain | int | None
    where: Where | None
    titles: bool | None
    prediction_ids: bool | None
    remember: bool | None
    timeout_s: float | None


class UserOptions(CallOptions, total=False):
    """Keywords of a prediction of many tasks for one user.

    ``user_id`` is returned in the answers. A canary answers the same users each time.
    """

    user_id: str | int | None


class PredictOptions(CallOptions, total=False):
    """Keywords of a prediction for one user.

    ``exclude``: items that a ranking must not return. ``candidates``: the only items that it may
    return. ``user_id`` is returned in the answer; the server does not look it up, but a canary
    answers the same users each time.
    """

    exclude: Sequence[ItemId] | None
    candidates: Sequence[ItemId] | None
    user_id: str | int | None


class UserBatchOptions(TypedDict, total=False):
    """Keywords of a stream of predictions of many tasks; ``CallOptions`` describes them.

    ``timeout_s``: seconds without progress after which the stream is given up (default 60), not of
    the whole stream.
    """

    top_k: int | None
    exclude_seen: bool | None
    unknown_items: UnknownItems | None
    titles: bool | None
    timeout_s: float | None


class BatchOptions(UserBatchOptions, total=False):
    """Keywords of a stream of predictions of one task."""

    version: int | str | None


class Instance(Struct, frozen=True, omit_defaults=True):
    """One user of ``predict_many`` or of a stream.

    ``history`` has item ids, oldest first; an empty one is a cold start. ``PredictOptions``
    describes the other fields. Raises TypeError if the history is a string instead of a list.
    """

    history: Sequence[ItemId]
    user_id: str | int | None = None
    top_k: int | None = None
    exclude: Sequence[ItemId] | None = None
    candidates: Sequence[ItemId] | None = None
    exclude_seen: bool | None = None
    explain: Explain | int | None = None
    where: Where | None = None

    def __post_init__(self) -> None:
        check_items(self.history, "history")
        check_items(self.exclude, "exclude")
        check_items(self.candidates, "candidates")


class TaskChoice(Struct, frozen=True, omit_defaults=True):
    """A task of ``predict_user`` with its own parameters."""

    task: str
    top_k: int | None = None
    exclude_seen: bool | None = None
    version: int | str | None = None
    exclude: Sequence[ItemId] | None = None
    candidates: Sequence[ItemId] | None = None
    explain: Explain | int | None = None
    where: Where | None = None

    def __post_init__(self) -> None:
        check_items(self.exclude, "exclude")
        check_items(self.candidates, "candidates")


class Parameters(Struct, frozen=True, omit_defaults=True):
    """Defaults for every instance of a call."""

    top_k: int | None = None
    exclude_seen: bool | None = None
    unknown_items: UnknownItems | None = None
    version: int | str | None = None
    explain: Explain | int | None = None
    where: Where | None = None
    titles: bool | None = None
    prediction_ids: bool | None = None
    remember: bool | None = None


class PredictBody(Struct, frozen=True):
    """Body of ``POST /tasks/{task}/predict``."""

    instances: Sequence[Instance]
    parameters: Parameters


class UserBody(Struct, frozen=True, omit_defaults=True):
    """Body of ``POST /users/predict``."""

    history: Sequence[ItemId]
    tasks: Sequence[str | TaskChoice] | str
    parameters: Parameters
    user_id: str | int | None = None


class BundleSource(Struct, frozen=True, omit_defaults=True):
    """A bundle that the server fetches, if its settings allow the address, instead of a file.

    ``source``: ``https://…``, ``s3://BUCKET/KEY``, ``oci://HOST/REPOSITORY:TAG`` or
    ``runs:/RUN_ID/PATH``. ``digest``: what the bundle must have, as ``sha256:…``.
    """

    source: str
    digest: str | None = None


class AliasBody(Struct, frozen=True, omit_defaults=True):
    """Body of ``PUT /tasks/{task}/aliases/{alias}``."""

    version: int | None = None
    digest: str | None = None


class TenantBody(Struct, frozen=True):
    """Body of ``PUT /tenants/{tenant}``."""

    description: str
    quotas: Mapping[str, int]
    weight: float = 1.0


class KeyBody(Struct, frozen=True, omit_defaults=True):
    """Body of ``POST /keys``."""

    name: str
    scopes: Sequence[str]
    expires_at: datetime | None = None


class RotationBody(Struct, frozen=True):
    """Body of ``POST /keys/{key_id}:rotate``."""

    overlap_s: float


def check_items(items: object, name: str) -> None:
    """Raise TypeError if ``items`` is a string: its letters would be taken for ids."""
    if isinstance(items, str | bytes):
        raise TypeError(f"{name} is a list of item ids, not the text {items[:40]!r}")


def check_options(options: Mapping[str, object], known: frozenset[str]) -> None:
    """Raise TypeError for a keyword that is not in ``known``, such as a misspelt one."""
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"there is no option {', '.join(unknown)}, only {', '.join(sorted(known))}")


def encode(body: object) -> bytes:
    """A body as JSON; arrays and integers of other libraries (NumPy, pandas) are understood."""
    return _encode(body)


def _plain(value: object) -> object:
    try:
        return operator.index(value)  # type: ignore[arg-type]  # a TypeError is the other answer
    except TypeError:
        return list(value)  # type: ignore[call-overload]  # a TypeError says what can't be sent


_encode = msgspec.json.Encoder(enc_hook=_plain).encode
