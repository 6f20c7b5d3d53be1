"""What the OpenAPI document says about refusals and about the bodies that msgspec decodes.

FastAPI writes the document from the declarations of the routes. Raw routes declare their bodies as
``raw_operation``, and ``complete`` adds the schemas that these refer to.
"""

from collections.abc import Iterator, Mapping
from inspect import cleandoc
from typing import Any, get_args

import msgspec

from peterrec.model.documents import Document
from peterrec.patches.identity import NAME_PATTERN
from peterrec.service.errors import Problem
from peterrec.service.http.open_inference_bodies import (
    IndexRequest,
    InferRequest,
    InferResponse,
    OpenInferenceError,
    RepositoryRequest,
)
from peterrec.service.http.views.availability import AvailabilityRequest
from peterrec.service.open_inference.inputs import INPUTS
from peterrec.service.open_inference.metadata import (
    ModelConfig,
    ModelIndex,
    ModelMetadata,
    ServerMetadata,
)
from peterrec.service.predict.schemas import (
    PredictRequest,
    PredictResponse,
    UsersPredictRequest,
    UsersPredictResponse,
)
from peterrec.service.predict.user_vectors import VectorsRequest, VectorsResponse

REF = "#/components/schemas/{name}"
"""Prefix of the references to schemas of bodies in the document."""

BODIES = (
    PredictRequest,
    PredictResponse,
    UsersPredictRequest,
    UsersPredictResponse,
    VectorsRequest,
    VectorsResponse,
    AvailabilityRequest,
    Problem,
    IndexRequest,
    InferRequest,
    InferResponse,
    ModelConfig,
    ModelIndex,
    ModelMetadata,
    OpenInferenceError,
    RepositoryRequest,
    ServerMetadata,
)
"""Bodies that msgspec decodes or encodes, and FastAPI therefore does not know."""

NDJSON = "application/x-ndjson"
"""Media type of JSON lines."""

ARROW_STREAM = "application/vnd.apache.arrow.stream"
"""Media type of Arrow record batches in the IPC streaming format."""

DESCRIPTION = """One shared user model, a small patch and head per task.

Send a user's history, get the prediction of one task or of many tasks. Every answer names the
bundle (digest) that computed it. Every refusal is `application/problem+json` with a stable `code`.
Send an API key as `Authorization: Bearer prk_…` or `X-API-Key`.

`X-Request-Id` is returned, and written to the log, if it is 1 to 128 of `A-Za-z0-9._:-`. A
prediction takes at most the milliseconds of `X-Request-Timeout-Ms` (1 to 600,000), else the
server's default. With `X-Priority: batch` it gives way to those that somebody waits for. Bodies
may be compressed (`Content-Encoding`: gzip, br, zstd or deflate), and answers are if
`Accept-Encoding` asks for it.

Both prediction calls also take and give MessagePack with the same fields: `Content-Type` and
`Accept: application/msgpack`.
"""

_USED = {"used_items": 3, "unknown_items": 0, "unknown": [], "truncated": False, "cold": False}
_BUNDLE = {"version": 7, "digest": "sha256:5f1c…", "alias": "prod", "role": "prod"}
_GENDER = {"kind": "classification", **_USED, "label": "F", "scores": {"F": 0.81, "M": 0.19}}
_FILMS = {"kind": "ranking", **_USED, "items": [{"id": "260", "score": 8.4}], "filtered": 3}

PREDICT_REQUESTS: dict[str, Document] = {
    "one user": {"value": {"history": ["1193", "661", "914"]}},
    "int ids": {"value": {"history": [1193, 661, 914]}},
    "cold start": {"value": {"history": []}},
    "a certain version": {
        "value": {"history": ["1193"], "parameters": {"version": "next"}},
    },
    "filtered, with titles": {
        "value": {
            "history": ["1193"],
            "parameters": {
                "where": {"genre": ["Drama", "War"], "price": {"lt": 20}},
                "titles": True,
            },
        }
    },
    "several users": {
        "value": {
            "instances": [
                {"history": ["1193", "661"], "user_id": "u1", "top_k": 5},
                {"history": ["914"], "exclude": ["260"], "candidates": ["260", "2", "3"]},
            ],
            "parameters": {"top_k": 10, "exclude_seen": True, "unknown_items": "drop"},
        }
    },
}

VECTORS_REQUESTS: dict[str, Document] = {
    "one user": {"value": {"history": ["1193", 661]}},
    "of a task's patch": {
        "value": {
            "instances": [{"history": ["1193"], "user_id": "u1"}, {"history": []}],
            "parameters": {"task": "films", "encoding": "base64_float16"},
        }
    },
}

VECTORS_RESPONSES: dict[str, Document] = {
    "one user": {
        "value": {
            "backbone": "3fa1…",
            "dimensions": 2,
            "encoding": "float32",
            "registry_revision": 42,
            "request_id": "a1b2-4",
            "vectors": [{"kind": "vector", "vector": [0.25, -1.5], **_USED}],
        }
    }
}

PREDICT_RESPONSES: dict[str, Document] = {
    "classification": {
        "value": {
            "task": "gender",
            **_BUNDLE,
            "kind": "classification",
            "registry_revision": 42,
            "request_id": "a1b2-1",
            "predictions": [_GENDER],
        }
    },
    "ranking": {
        "value": {
            "task": "films",
            **_BUNDLE,
            "kind": "ranking",
            "registry_revision": 42,
            "request_id": "a1b2-2",
            "predictions": [
                _FILMS,
                {
                    "kind": "error",
                    "error": {
                        "code": "history_too_long",
                        "message": "…",
                        "hint": "…",
                        "retryable": False,
                    },
                },
            ],
        }
    },
}

USERS_REQUESTS: dict[str, Document] = {
    "some tasks": {
        "value": {
            "history": [1193, 661],
            "user_id": "u1",
            "tasks": ["gender", {"task": "films", "top_k": 20, "exclude": ["260"], "version": 7}],
        }
    },
    "all tasks": {"value": {"history": [1193, 661], "tasks": "all"}},
}

USERS_RESPONSES: dict[str, Document] = {
    "profile card": {
        "value": {
            "registry_revision": 42,
            "request_id": "a1b2-3",
            "results": {
                "gender": {**_BUNDLE, **_GENDER},
                "films": {**_BUNDLE, **_FILMS},
            },
            "errors": {
                "x": {"code": "task_not_found", "message": "…", "hint": "…", "retryable": False}
            },
        }
    }
}

_STATUSES = {
    400: "Malformed; the message says where.",
    401: "No valid API key.",
    403: "The key may not do this.",
    404: "It does not exist.",
    408: "The request did not arrive in time.",
    409: "The state of the task does not allow it.",
    410: "The changes are no longer kept.",
    412: "The task has changed since If-Match.",
    413: "The body, or what it asks for, is too large.",
    415: "The body is in a coding or a format that is not supported.",
    422: "The bundle must not be served here; `reasons` lists why.",
    429: "Too much is waiting; see Retry-After.",
    431: "The head of the request is too large.",
    500: "A fault of the server, whose log names the request id.",
    503: "The device process, the bundle or the registry is not available; see Retry-After.",
    504: "The deadline has passed.",
    507: "There is no room for it.",
}
"""Refusals by status, as every operation that may give one describes it."""

_ANYWHERE = (400, 408, 429, 431, 500)
_WITH_KEY = (401, 403, 503)
_WITH_BODY = (413, 415)
_FURTHER: Mapping[str, tuple[int, ...]] = {
    "predict": (404, 409, 504),
    "user_vectors": (404, 409, 504),
    "predict_many_tasks": (404, 409, 504),
    "push": (404, 409, 412, 422, 504, 507),
    "follow": (410,),
    "infer": (404, 409, 504),
    "model_": (404, 409),
    "repository_": (404, 409),
}
"""Statuses of single operations, by the beginning of their ids."""

_NAME = NAME_PATTERN
_VERSION = r"^([0-9]{1,18}|(sha256:)?[0-9a-f]{64})$"
_PARAMETERS: Mapping[tuple[str, str], Document] = {
    ("path", "task"): {"pattern": _NAME},
    ("path", "tenant"): {"pattern": _NAME},
    ("query", "task"): {},
    ("path", "alias"): {"pattern": _NAME},
    ("query", "alias"): {"pattern": _NAME.replace("^", "^(").replace("$", ")?$")},
    ("path", "version"): {"pattern": _VERSION},
    ("path", "key_id"): {"pattern": "^[0-9a-f]{1,64}$"},
    ("header", "if-match"): {"pattern": r'^(\*|(W/)?"?[0-9]{1,18}"?)$'},
    ("header", "if-none-match"): {"enum": ["*"]},
    ("header", "last-event-id"): {"pattern": "^[0-9]{1,18}$"},
}
"""The forms of parameters that the server checks itself, with hints of its own."""

_NULL: Document = {"type": "null"}


def _alone(name: str, other: str) -> Document:
    """Say that one field is given, and the other one is not or is null."""
    return {"required": [name], "properties": {name: {"not": _NULL}, other: _NULL}}


_ONE_VERSION = {"oneOf": [_alone("version", "digest"), _alone("digest", "version")]}
_ONE_HISTORY = {
    "oneOf": [
        {"required": ["history"], "not": {"required": ["instances"]}},
        {
            "required": ["instances"],
            "properties": {"user_id": _NULL},
            "not": {"required": ["history"]},
        },
    ]
}
_VERSION_OF_A_TASK = {
    "anyOf": [
        {"properties": {"version": _NULL}},
        {"required": ["task"], "properties": {"task": {"not": _NULL}}},
    ]
}
_TEXTS: Mapping[tuple[str, str], Document] = {
    ("KeyRequest", "scopes"): {"pattern": r"^(predict|vectors|admin)(:[A-Za-z0-9._*?-]{1,128})?$"},
    ("AliasRequest", "digest"): {"pattern": "^(sha256:)?[0-9a-f]{64}$"},
    ("InputTensor", "name"): {"enum": [*INPUTS]},
}
"""The forms of texts in bodies, by the name of the schema and the field."""


def _given(name: str, form: Document) -> Document:
    return {"required": [name], "properties": {name: form}}


_SOME_TRAFFIC = {"anyOf": [_given(name, {"minItems": 1}) for name in ("canary", "shadow")]}
_SOME_BOUND = {
    "anyOf": [
        _given(name, {"not": _NULL})
        for name in ("max_error_share", "max_p99_ms", "max_divergence", "max_hit_drop")
    ]
}
_FORMS: Mapping[str, Document] = {
    "AliasRequest": _ONE_VERSION,
    "GuardRequest": _SOME_BOUND,
    "AvailabilityRequest": {"minProperties": 1, "maxProperties": 1},
    "PredictRequest": _ONE_HISTORY,
    "VectorsAsked": _VERSION_OF_A_TASK,
    "VectorsRequest": _ONE_HISTORY,
    "TrafficRequest": _SOME_TRAFFIC,
}
"""What bodies demand of several fields together, by the name of their schema."""

_PROBLEM = {"application/problem+json": {"schema": {"$ref": REF.format(name="Problem")}}}

_REFUSALS_OF: Mapping[str, Document] = {
    "Refusal": _PROBLEM,
    "OpenInferenceRefusal": {
        "application/json": {"schema": {"$ref": REF.format(name="OpenInferenceError")}},
        **_PROBLEM,
    },
}
"""What refusals look like; those from before a route is known are problems everywhere."""

REFUSALS: dict[int | str, Document] = {
    "default": {"description": "A refusal.", "content": _PROBLEM},
}
"""Refusals as every operation declares them. They replace FastAPI's own 422, which is never sent:
a malformed body is a 400."""


def raw_operation(
    request: type, requests: dict[str, Document], response: type, responses: dict[str, Document]
) -> Document:
    """Describe headers, bodies and statuses of a raw route, with examples of both bodies."""
    return {
        "requestBody": {"required": True, "content": _body(request, requests)},
        "responses": {"200": {"content": _body(response, responses)}},
    }


def batch_operation() -> Document:
    """Describe a stream of users and answers in its two forms."""
    forms = {
        NDJSON: {"schema": {"type": "string"}},
        ARROW_STREAM: {"schema": {"type": "string", "format": "binary"}},
    }
    return {
        "requestBody": {"required": True, "content": forms},
        "responses": {"200": {"content": forms}},
    }


def body_of(body: type) -> Document:
    """Describe a body that may be left out."""
    return {"requestBody": {"required": False, "content": _body(body, {})}}


def answer_of(answer: Any) -> Document:
    """Describe an answer that msgspec encodes: a struct in ``BODIES``, or a list of one."""
    # Any: a class, or a list of one
    (item,) = get_args(answer) or (answer,)
    schema: Document = {"$ref": REF.format(name=item.__name__)}
    if item is not answer:
        schema = {"type": "array", "items": schema}
    return {"responses": {"200": {"content": {"application/json": {"schema": schema}}}}}


def complete(document: Document) -> None:
    """Add what FastAPI does not know: bodies of msgspec, forms of parameters, and refusals."""
    _add_schemas(document)
    schemas = document["components"]["schemas"]
    for name, form in _FORMS.items():
        schemas[name].update(form)
    for (name, field), form in _TEXTS.items():
        for option in _texts_in(schemas[name]["properties"][field]):
            option.update(form)
    document["components"]["responses"] = {
        f"{kind}{status}": {"description": about, "content": content}
        for kind, content in _REFUSALS_OF.items()
        for status, about in _STATUSES.items()
    }
    for path, operations in document["paths"].items():
        kind = "OpenInferenceRefusal" if path.startswith("/v2") else "Refusal"
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                _add_form(parameter)
            operation["responses"]["default"] = {
                **REFUSALS["default"],
                "content": _REFUSALS_OF[kind],
            }
            _add_refusals(operation, kind)


def _add_form(parameter: Document) -> None:
    form = _PARAMETERS.get((parameter["in"], parameter["name"].lower()), {})
    schema = parameter["schema"]
    options = [each for each in schema.pop("anyOf", []) if each != _NULL]
    if len(options) == 1:  # a parameter can be left out, but is never null
        schema.update(options[0])
    elif options:
        schema["anyOf"] = options
    for option in _texts_in(schema):
        option.update(form | option)


def _texts_in(schema: Document) -> Iterator[Document]:
    """Return the schemas of the texts that a schema allows, alone or in a list."""
    for option in schema.get("anyOf", [schema]):
        if option.get("type") == "string":
            yield option
        elif option.get("type") == "array":
            yield from _texts_in(option["items"])


def _add_refusals(operation: Document, kind: str) -> None:
    statuses = {*_ANYWHERE, *(_WITH_KEY if "security" in operation else ())}
    if "requestBody" in operation:
        statuses.update(_WITH_BODY)
    named = {parameter["name"].lower() for parameter in operation.get("parameters", [])}
    if named & {"task", "key_id", "tenant"}:
        statuses.add(404)
    if "if-match" in named:
        statuses.update((409, 412, 507))
    for beginning, further in _FURTHER.items():
        if operation["operationId"].startswith(beginning):
            statuses.update(further)
    for status in sorted(statuses):
        refusal = {"$ref": f"#/components/responses/{kind}{status}"}
        operation["responses"].setdefault(str(status), refusal)


def _add_schemas(document: Document) -> None:
    """Add the schemas of all bodies in ``BODIES`` to a document."""
    _, schemas = msgspec.json.schema_components(BODIES, ref_template=REF)
    for schema in schemas.values():
        if "description" in schema:  # a docstring, which msgspec before 0.23 leaves indented
            schema["description"] = cleandoc(schema["description"])
    document["components"]["schemas"].update(schemas)


def _body(body: type, examples: dict[str, Document]) -> Document:
    schema = {"$ref": REF.format(name=body.__name__)}
    return {"application/json": {"schema": schema, "examples": examples}}
