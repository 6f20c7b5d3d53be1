"""The prediction calls: arguments → request bodies, answers → results."""

from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import quote

import msgspec
from msgspec import Struct

from peterrec_client.answers import FailedInstance, UserPrediction
from peterrec_client.call import Call
from peterrec_client.kinds import AnyPrediction, ItemId, Prediction
from peterrec_client.kinds.prediction import Reason
from peterrec_client.questions import (
    CallOptions,
    Instance,
    Parameters,
    PredictBody,
    PredictOptions,
    TaskChoice,
    UserBody,
    UserOptions,
    check_items,
    check_options,
    encode,
)

Fields = dict[str, object]


class _Answer(Struct, frozen=True):
    task: str
    version: int
    digest: str
    alias: str | None
    registry_revision: int
    request_id: str
    predictions: list[Fields]
    role: str = "prod"


class UserAnswer(Struct, frozen=True):
    """One user's answers of many tasks as they are sent; those of a stream say less."""

    results: Mapping[str, Fields]
    errors: Mapping[str, Reason]
    registry_revision: int | None = None
    request_id: str = ""
    user_id: str | int | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_user_answer = msgspec.json.Decoder(UserAnswer).decode


def predict(task: str, history: Sequence[ItemId], options: PredictOptions) -> Call[Prediction]:
    """Request one task's prediction for one user."""
    instance = instance_of(history, options)
    return Call(
        "POST",
        path_of(task),
        _read_only,
        encode(PredictBody([instance], _parameters(options))),
        timeout_s=options.get("timeout_s"),
        is_hedged=True,
    )


def instance_of(history: Sequence[ItemId], options: PredictOptions) -> Instance:
    """Return the part of a prediction's arguments that is about its user."""
    check_options(options, PredictOptions.__optional_keys__)
    return Instance(
        history,
        user_id=options.get("user_id"),
        exclude=options.get("exclude"),
        candidates=options.get("candidates"),
    )


def predict_many(
    task: str, instances: Sequence[Instance | Sequence[ItemId]], options: CallOptions
) -> Call[list[Prediction | FailedInstance]]:
    """Request one task's predictions for several users, in their order."""
    check_options(options, CallOptions.__optional_keys__)
    asked = [each if isinstance(each, Instance) else Instance(each) for each in instances]
    return Call(
        "POST",
        path_of(task),
        _read_all,
        encode(PredictBody(asked, _parameters(options))),
        timeout_s=options.get("timeout_s"),
        is_hedged=True,
    )


def predict_user(
    history: Sequence[ItemId],
    tasks: Sequence[str | TaskChoice] | Literal["all"],
    options: UserOptions,
) -> Call[UserPrediction]:
    """Request many tasks' predictions for one user."""
    check_options(options, UserOptions.__optional_keys__)
    check_items(history, "history")
    if isinstance(tasks, str) and tasks != "all":
        raise TypeError(f'tasks is a list of names or "all", not the text {tasks[:40]!r}')
    return Call(
        "POST",
        "/users/predict",
        _read_user,
        encode(UserBody(history, tasks, _parameters(options), options.get("user_id"))),
        timeout_s=options.get("timeout_s"),
        is_hedged=True,
    )


def path_of(task: str) -> str:
    """The path of one task's predictions."""
    return f"/tasks/{quote(task, safe='')}/predict"


def _parameters(options: CallOptions) -> Parameters:
    return Parameters(
        options.get("top_k"),
        options.get("exclude_seen"),
        options.get("unknown_items"),
        options.get("version"),
        options.get("explain"),
        options.get("where"),
        options.get("titles"),
        options.get("prediction_ids"),
        options.get("remember"),
    )


def _read_only(body: bytes) -> Prediction:
    answer = _decode_answer(body)
    if len(answer.predictions) != 1:
        raise msgspec.ValidationError(f"{len(answer.predictions)} predictions for one history")
    return _prediction(_named(answer, answer.predictions[0]))


def _read_all(body: bytes) -> list[Prediction | FailedInstance]:
    answer = _decode_answer(body)
    return [slot(_named(answer, fields)) for fields in answer.predictions]


def _read_user(body: bytes) -> UserPrediction:
    return profile(_decode_user_answer(body))


def profile(answer: UserAnswer) -> UserPrediction:
    """Read a profile. A task whose kind only newer clients know becomes an error in its place."""
    results: dict[str, Prediction] = {}
    errors = dict(answer.errors)
    shared = {"registry_revision": answer.registry_revision, "request_id": answer.request_id}
    for task, fields in answer.results.items():
        try:
            results[task] = _prediction({"task": task, **shared, **fields})
        except msgspec.ValidationError as error:
            errors[task] = Reason("unexpected_answer", f"{error}.", "Update peterrec-client.")
    return UserPrediction(
        answer.registry_revision, answer.request_id, results, errors, answer.user_id
    )


def _named(answer: _Answer, fields: Fields) -> Fields:
    """Add the fields that all predictions of an answer share to those of one prediction."""
    return {
        "task": answer.task,
        "version": answer.version,
        "digest": answer.digest,
        "alias": answer.alias,
        "role": answer.role,
        "registry_revision": answer.registry_revision,
        "request_id": answer.request_id,
        **fields,
    }


def slot(fields: Fields) -> Prediction | FailedInstance:
    """One user's answer, or why there is none."""
    if fields.get("kind") == "error":
        return msgspec.convert(fields, FailedInstance)
    return _prediction(fields)


def _prediction(fields: Fields) -> Prediction:
    return msgspec.convert(fields, AnyPrediction)
