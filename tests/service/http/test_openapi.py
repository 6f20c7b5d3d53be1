"""The OpenAPI document: complete, its references resolve, its examples are real."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from peterrec.model.documents import Document
from peterrec.service.http.openapi import (
    PREDICT_REQUESTS,
    PREDICT_RESPONSES,
    USERS_REQUESTS,
    USERS_RESPONSES,
)
from peterrec.service.predict.schemas import (
    PredictRequest,
    PredictResponse,
    UsersPredictRequest,
    UsersPredictResponse,
)
from tests.service.http.application import SNAPSHOT, make_application, render_document

EXAMPLES = {
    PredictRequest: PREDICT_REQUESTS,
    PredictResponse: PREDICT_RESPONSES,
    UsersPredictRequest: USERS_REQUESTS,
    UsersPredictResponse: USERS_RESPONSES,
}


@pytest.fixture(scope="module")
def document() -> Document:
    return make_application().openapi()


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_resolves(document):
    known = {
        f"#/components/{kind}/{name}"
        for kind in ("schemas", "responses")
        for name in document["components"][kind]
    }
    assert set(references(document)) <= known


def test_the_predictions_have_their_whole_schema(document):
    operation = document["paths"]["/tasks/{task}/predict"]["post"]
    assert {"200", "400", "401", "404", "413", "429", "503", "504"} <= set(operation["responses"])
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    assert set(schema["properties"]) == {"history", "instances", "parameters", "user_id"}
    assert schema["additionalProperties"] is False


def test_every_operation_describes_its_refusals_as_problems(document):
    for path, operations in document["paths"].items():
        forms = ["application/json"] if path.startswith("/v2") else []
        for operation in operations.values():
            default = operation["responses"]["default"]["content"]
            assert [*default] == [*forms, "application/problem+json"]
            of_fastapi = "#/components/schemas/HTTPValidationError"
            assert of_fastapi not in set(references(operation))


def test_every_operation_lists_the_statuses_of_its_refusals(document):
    for path, operations in document["paths"].items():
        for operation in operations.values():
            listed = set(operation["responses"])
            assert {"400", "408", "429", "431", "500"} <= listed, path
            assert ("401" in listed) == ("security" in operation), path
            assert ("413" in listed) == ("requestBody" in operation), path


def test_every_operation_but_health_names_the_ways_to_send_a_key(document):
    health = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}
    schemes = set(document["components"]["securitySchemes"])
    for name, path in document["paths"].items():
        for operation in path.values():
            given = {scheme for way in operation.get("security", []) for scheme in way}
            assert given == (set() if name in health else schemes), name


@pytest.mark.parametrize("body", EXAMPLES)
def test_every_example_is_a_valid_body(body):
    for example in EXAMPLES[body].values():
        msgspec.convert(example["value"], body, strict=True)


def test_the_document_is_the_one_that_was_reviewed():
    assert render_document() == SNAPSHOT.read_text(encoding="utf-8"), (
        "The OpenAPI document has changed. If that is intended, run "
        "`python -m tests.service.http.application` and review the difference."
    )
