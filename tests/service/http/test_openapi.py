"""The OpenAPI document: complete, its references resolve, its examples are real."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from peterrec.model.files.backbone_info import BackboneInfo
from peterrec.model.spec import BackboneSpec
from peterrec.patches.registry.registry import Registry
from peterrec.service.http.app import create_app
from peterrec.service.http.auth import Authenticator
from peterrec.service.http.openapi import (
    PREDICT_REQUESTS,
    PREDICT_RESPONSES,
    USERS_REQUESTS,
    USERS_RESPONSES,
    Document,
    build_document,
)
from peterrec.service.http.routes.context import AdminContext
from peterrec.service.http.routes.predict import PredictContext
from peterrec.service.predict.catalogs import Catalogs
from peterrec.service.predict.device_link import DeviceLink
from peterrec.service.predict.item_ids import ItemVocabulary
from peterrec.service.predict.predictor import Predictor
from peterrec.service.predict.schemas import (
    PredictRequest,
    PredictResponse,
    UsersPredictRequest,
    UsersPredictResponse,
)
from peterrec.service.predict.task_table import TaskTable

EXAMPLES = {
    PredictRequest: PREDICT_REQUESTS,
    PredictResponse: PREDICT_RESPONSES,
    UsersPredictRequest: USERS_REQUESTS,
    UsersPredictResponse: USERS_RESPONSES,
}


@pytest.fixture
def document(registry: Registry, tmp_path: Path) -> Document:
    table, authenticator = TaskTable(), Authenticator(is_required=True)
    link = DeviceLink("ipc:///nowhere", "w", table, max_rows=1, on_update=lambda _: None)
    info = BackboneInfo(BackboneSpec(item_count=1), ["a"], "f" * 64)
    predictor = Predictor(ItemVocabulary(["a"], 5), table, link, Catalogs(), lambda _: None)
    app = create_app(
        AdminContext(table, authenticator, link, registry, info, tmp_path, 1),
        PredictContext(table, authenticator, predictor, lambda _: None, 1000),
    )
    return build_document(app.framework)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_resolves(document):
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= known


def test_the_predictions_have_their_whole_schema(document):
    operation = document["paths"]["/tasks/{task}/predict"]["post"]
    assert {"200", "400", "401", "404", "413", "429", "503", "504"} <= set(operation["responses"])
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    assert set(schema["properties"]) == {"history", "instances", "parameters"}
    assert schema["additionalProperties"] is False


def test_every_operation_tells_its_refusals_as_problems(document):
    for path in document["paths"].values():
        for operation in path.values():
            default = operation["responses"]["default"]["content"]
            assert [*default] == ["application/problem+json"]
            assert "422" not in operation["responses"]


def test_every_operation_but_health_names_the_ways_to_send_a_key(document):
    schemes = set(document["components"]["securitySchemes"])
    for name, path in document["paths"].items():
        for operation in path.values():
            given = {scheme for way in operation.get("security", []) for scheme in way}
            assert given == (set() if name in {"/livez", "/readyz"} else schemes), name


@pytest.mark.parametrize("body", EXAMPLES)
def test_every_example_is_a_valid_body(body):
    for example in EXAMPLES[body].values():
        msgspec.convert(example["value"], body, strict=True)
