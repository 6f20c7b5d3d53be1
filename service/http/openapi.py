"""The OpenAPI document: FastAPI's routes, the msgspec bodies of the predictions, our errors."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from peterrec.service.errors import Problem
from peterrec.service.predict.schemas import (
    PredictRequest,
    PredictResponse,
    UsersPredictRequest,
    UsersPredictResponse,
)

Document = dict[str, Any]  # Any: a JSON document

REF = "#/components/schemas/{name}"

DESCRIPTION = """One shared user model, a small patch and head per task.

Send a user's history, get the prediction of a task, or of many tasks at once. Every answer names
the bundle (digest) that gave it. Every refusal is `application/problem+json` with a stable `code`.
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
    "a version of one's own": {
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
                    "error": {"code": "history_too_long", "message": "…", "hint": "…"},
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
            "tasks": ["gender", {"task": "films", "top_k": 20, "version": 7}],
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
            "errors": {"x": {"code": "task_not_found", "message": "…", "hint": "…"}},
        }
    }
}

_STATUSES = {
    400: "Malformed: the message names the place.",
    401: "No valid API key.",
    403: "The key may not do this.",
    404: "No such task, or it has no such alias.",
    409: "The task has no prod version, or the version that is asked for is not served.",
    413: "The body, the history or the number of rows is too large.",
    429: "Too many rows wait; see Retry-After.",
    503: "The device process or the bundle is not there yet; see Retry-After.",
    504: "The deadline has passed.",
}

_HEADERS = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "schema": {"type": "string"},
        "description": "Returned as it is, and in the log.",
    },
    {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "schema": {"type": "integer", "minimum": 1, "maximum": 600_000},
        "description": "Milliseconds the answer may take, instead of the server's default.",
    },
]


def build_document(app: FastAPI) -> Document:
    """The whole document, built once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        components = document.setdefault("components", {}).setdefault("schemas", {})
        refs = _add_schemas(components)
        document["paths"] = _predict_paths(refs) | document["paths"]
        for path in document["paths"].values():
            for operation in path.values():
                _describe_refusals(operation)
        for name in ("HTTPValidationError", "ValidationError"):
            components.pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema


def _add_schemas(components: Document) -> dict[type, Document]:
    bodies = [PredictRequest, PredictResponse, UsersPredictRequest, UsersPredictResponse, Problem]
    refs, schemas = msgspec.json.schema_components(bodies, ref_template=REF)
    components.update(schemas)
    return dict(zip(bodies, refs, strict=True))


def _predict_paths(refs: dict[type, Document]) -> Document:
    task = {"name": "task", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "/tasks/{task}/predict": {
            "post": _operation(
                "Predict",
                "One task's prediction for one history, or for each of several instances. A bad "
                "instance gets an error in its slot and never fails its neighbours.",
                [task],
                _body(refs[PredictRequest], PREDICT_REQUESTS),
                _body(refs[PredictResponse], PREDICT_RESPONSES),
            )
        },
        "/users/predict": {
            "post": _operation(
                "Predict many tasks",
                "Many tasks for one history, all by one registry revision. Tasks that can't be "
                "answered are in errors; if none can, the first error is the response.",
                [],
                _body(refs[UsersPredictRequest], USERS_REQUESTS),
                _body(refs[UsersPredictResponse], USERS_RESPONSES),
            )
        },
    }


def _operation(
    summary: str, description: str, parameters: list[Document], body: Document, answer: Document
) -> Document:
    return {
        "tags": ["predict"],
        "summary": summary,
        "operationId": summary.lower().replace(" ", "_"),
        "description": description,
        "parameters": [*parameters, *_HEADERS],
        "requestBody": {"required": True, "content": body},
        "responses": {
            "200": {"description": "Answered.", "content": answer},
            **{str(s): {"description": d, "content": _problem()} for s, d in _STATUSES.items()},
        },
        "security": [{"HTTPBearer": []}, {"APIKeyHeader": []}],
    }


def _body(schema: Document, examples: dict[str, Document]) -> Document:
    return {"application/json": {"schema": schema, "examples": examples}}


def _problem() -> Document:
    return {"application/problem+json": {"schema": {"$ref": REF.format(name="Problem")}}}


def _describe_refusals(operation: Document) -> None:
    """Our refusals instead of the framework's: it would answer 422, we answer 400."""
    operation["responses"].pop("422", None)
    operation["responses"]["default"] = {"description": "A refusal.", "content": _problem()}
