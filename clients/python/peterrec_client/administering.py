"""The calls that register, activate and inspect bundles and tasks."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import msgspec

from peterrec_client.answers import (
    AliasMoved,
    Backbone,
    Changed,
    Pushed,
    Readiness,
    RolledBack,
    Task,
    TaskDetail,
)
from peterrec_client.call import Call, Repeat
from peterrec_client.questions import AliasBody, BundleSource, encode

CHANGE_TIMEOUT_S = 180.0
"""Seconds for a push or another change. The server verifies a pushed bundle and runs its probes. It
answers a change only when all workers of its replica serve it, which can take minutes."""


def push(
    task: str,
    bundle: Path | str | BundleSource,
    alias: str | None,
    validate_only: bool,
    allow_new_outputs: bool,
    if_revision: int | None,
) -> Call[Pushed]:
    """Register a bundle. Pushing the same bytes again yields the same version."""
    return Call(
        "POST",
        f"{_path(task)}/versions",
        msgspec.json.Decoder(Pushed).decode,
        encode(bundle) if isinstance(bundle, BundleSource) else Path(bundle),
        params={
            "alias": alias or "",
            "validate_only": str(validate_only).lower(),
            **_outputs(allow_new_outputs),
        },
        headers=_if_match(if_revision),
        repeat=Repeat.ALWAYS if if_revision is None else Repeat.IF_UNSENT,
        timeout_s=CHANGE_TIMEOUT_S,
    )


def tasks() -> Call[list[Task]]:
    """List the tasks that the key may use."""
    return Call("GET", "/tasks", msgspec.json.Decoder(list[Task]).decode)


def task(name: str) -> Call[TaskDetail]:
    """Read a task with its versions."""
    return Call("GET", _path(name), msgspec.json.Decoder(TaskDetail).decode)


def set_alias(
    task: str, alias: str, version: int | str, allow_new_outputs: bool, if_revision: int | None
) -> Call[AliasMoved]:
    """Point an alias at a version, given by its number or digest."""
    body = AliasBody(version) if isinstance(version, int) else AliasBody(digest=version)
    return Call(
        "PUT",
        f"{_path(task)}/aliases/{quote(alias, safe='')}",
        msgspec.json.Decoder(AliasMoved).decode,
        encode(body),
        params=_outputs(allow_new_outputs),
        headers=_if_match(if_revision),
        repeat=Repeat.ALWAYS if if_revision is None else Repeat.IF_UNSENT,
        timeout_s=CHANGE_TIMEOUT_S,
    )


def rollback(task: str, alias: str, if_revision: int | None) -> Call[RolledBack]:
    """Restore the task's previous state.

    Two rollbacks go back two steps, so a lost call is repeated only if it was never sent.
    """
    return Call(
        "POST",
        f"{_path(task)}:rollback",
        msgspec.json.Decoder(RolledBack).decode,
        params={"alias": alias},
        headers=_if_match(if_revision),
        repeat=Repeat.IF_UNSENT,
        timeout_s=CHANGE_TIMEOUT_S,
    )


def delete_task(task: str, if_revision: int | None) -> Call[Changed]:
    """Delete a task.

    A lost call is repeated only if it was never sent: the second answer would be 404.
    """
    return Call(
        "DELETE",
        _path(task),
        msgspec.json.Decoder(Changed).decode,
        headers=_if_match(if_revision),
        repeat=Repeat.IF_UNSENT,
        timeout_s=CHANGE_TIMEOUT_S,
    )


def backbone() -> Call[Backbone]:
    """Read what the server's shared model is."""
    return Call("GET", "/backbone", msgspec.json.Decoder(Backbone).decode)


def ready() -> Call[Readiness]:
    """Read whether the server is ready. "Not ready" (503) is an answer, so it is not retried."""
    return Call(
        "GET",
        "/readyz",
        msgspec.json.Decoder(Readiness).decode,
        repeat=Repeat.NEVER,
        also_answers=frozenset({503}),
    )


def request(
    method: str, path: str, body: object, params: Mapping[str, str], if_revision: int | None
) -> Call[bytes]:
    """Make any call and return its body unchanged. Changes are repeated only if unsent."""
    is_change = method != "GET"
    return Call(
        method,
        path,
        bytes,
        body if isinstance(body, Path) else b"" if body is None else encode(body),
        params=params,
        headers=_if_match(if_revision),
        repeat=Repeat.IF_UNSENT if is_change else Repeat.ALWAYS,
        timeout_s=CHANGE_TIMEOUT_S if is_change else None,
    )


def _path(task: str) -> str:
    return f"/tasks/{quote(task, safe='')}"


def _if_match(revision: int | None) -> dict[str, str]:
    return {} if revision is None else {"If-Match": f'"{revision}"'}


def _outputs(are_new_allowed: bool) -> dict[str, str]:
    return {"allow_new_outputs": "true"} if are_new_allowed else {}
