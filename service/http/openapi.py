"""What the OpenAPI document says about refusals and about the bodies that msgspec decodes.

FastAPI writes the document from the declarations of the routes. Raw routes declare their bodies as
``raw_operation``, and ``add_schemas`` adds the schemas that these refer to.
"""

from inspect import cleandoc

import msgspec

from peterrec.model.documents import Document
from peterrec.service.errors import Problem
from peterrec.service.predict.schemas import (
    PredictRequest,
    PredictResponse,
    UsersPredictRequest,
    UsersPredictResponse,
)

REF = "#/components/schemas/{name}"
"""Prefix of the references to schemas of bodies in the document."""

BODIES = (PredictRequest, PredictResponse, UsersPredictRequest, UsersPredictResponse, Problem)
"""Bodies that msgspec decodes or encodes, and FastAPI therefore does not know."""

DESCRIPTION = """One shared user model, a small patch and head per task.

Send a user's history, get the prediction of one task or of many tasks. Every answer names the
bundle (digest) that computed it. Every refusal is `application/problem+json` with a stable `code`.
Send an API key as `Authorization: Bearer prk_…` or `X-API-Key`.
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
    404: "The task, the alias or the version does not exist.",
    409: "The task has no prod version, the version is not served, or its bundle was refused.",
    413: "The body, the history or the number of rows is too large, for instance for the queue.",
    429: "Too many rows are waiting; see Retry-After.",
    503: "The device process or the bundle is not available yet; see Retry-After.",
    504: "The deadline has passed.",
}
"""Statuses of a prediction call other than 200."""

_HEADERS = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "schema": {"type": "string"},
        "description": "Returned unchanged, and written to the log.",
    },
    {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "schema": {"type": "integer", "minimum": 1, "maximum": 600_000},
        "description": "Milliseconds that the answer may take, instead of the server's default.",
    },
]

_PROBLEM = {"application/problem+json": {"schema": {"$ref": REF.format(name="Problem")}}}

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
        "parameters": _HEADERS,
        "requestBody": {"required": True, "content": _body(request, requests)},
        "responses": {
            "200": {"content": _body(response, responses)},
            **{str(s): {"description": d, "content": _PROBLEM} for s, d in _STATUSES.items()},
        },
    }


def add_schemas(document: Document) -> None:
    """Add the schemas of all bodies in ``BODIES`` to a document."""
    _, schemas = msgspec.json.schema_components(BODIES, ref_template=REF)
    for schema in schemas.values():
        if "description" in schema:  # a docstring, which msgspec before 0.23 leaves indented
            schema["description"] = cleandoc(schema["description"])
    document["components"]["schemas"].update(schemas)


def _body(body: type, examples: dict[str, Document]) -> Document:
    schema = {"$ref": REF.format(name=body.__name__)}
    return {"application/json": {"schema": schema, "examples": examples}}
