"""Request bodies, and the options that callers give."""

import operator
from collections.abc import Sequence
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


class CallOptions(TypedDict, total=False):
    """Keywords of every prediction. For one that is left out, the server's default applies.

    ``top_k``: how many items a ranking returns, 1 to 1000 (default 10). ``exclude_seen``: whether
    a ranking leaves out the history's items (default: yes). ``unknown_items``: whether items
    outside the backbone's vocabulary are left out (``drop``, the default), read as UNK (``map``) or
    refused (``error``). ``version``: the version that answers instead of prod and its canaries, by
    number, digest or alias. ``explain``: how many items of the history the answer names that moved
    it most (default 0), or an ``Explain``; each different item costs the server a row.
    ``timeout_s``: seconds for the whole call including retries, instead of the client's.
    """

    top_k: int | None
    exclude_seen: bool | None
    unknown_items: UnknownItems | None
    version: int | str | None
    explain: Explain | int | None
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


class Instance(Struct, frozen=True, omit_defaults=True):
    """One user of ``predict_many``.

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


class AliasBody(Struct, frozen=True, omit_defaults=True):
    """Body of ``PUT /tasks/{task}/aliases/{alias}``."""

    version: int | None = None
    digest: str | None = None


def check_items(items: object, name: str) -> None:
    """Raise TypeError if ``items`` is a string: its letters would be taken for ids."""
    if isinstance(items, str | bytes):
        raise TypeError(f"{name} is a list of item ids, not the text {items[:40]!r}")


def check_options(options: CallOptions, known: frozenset[str]) -> None:
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
