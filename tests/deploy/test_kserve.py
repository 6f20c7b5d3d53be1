"""The objects for KServe have the fields that KServe's own models have, and values of their types.

The models are those of the package `kserve`, which are generated from its API. They are read, not
imported: the package's many requirements are those of a server. `pip install --no-deps kserve`
brings them.
"""

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.deploy.manifests import VERSIONS, Document, kustomize, one

pytestmark = pytest.mark.skipif(not kustomize(), reason="needs kustomize or kubectl")
needs_models = pytest.mark.skipif(
    importlib.util.find_spec("kserve") is None, reason="needs `pip install --no-deps kserve`"
)

OBJECTS = {
    "ServingRuntime": "V1alpha1ServingRuntime",
    "InferenceService": "V1beta1InferenceService",
}
PLAIN: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (int, float),
    "object": (object,),
}
REQUIRED = re.compile(r"Invalid value for `(\w+)`, must not be `None`")


@dataclass(frozen=True)
class Model:
    """A model's fields, by their names in an object, with their types; and those it must have."""

    types: dict[str, str]
    required: frozenset[str]


@functools.cache
def models() -> dict[str, Model]:
    spec = importlib.util.find_spec("kserve")
    assert spec is not None
    assert spec.origin is not None
    found: dict[str, Model] = {}
    for path in sorted((Path(spec.origin).parent / "models").glob("v*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = model_of(node, text)
    return found


def model_of(node: ast.ClassDef, text: str) -> Model:
    literals = {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in node.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    names = literals["attribute_map"]
    types = {names[field]: kind for field, kind in literals["openapi_types"].items()}
    return Model(types, frozenset(names[field] for field in REQUIRED.findall(text)))


def problems(value: Any, kind: str, where: str) -> Iterator[str]:  # Any: YAML
    """What is wrong with a value of this type; types of Kubernetes itself are not looked into."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        for number, each in enumerate(value):
            yield from problems(each, inner[1], f"{where}[{number}]")
    elif inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        for name, each in value.items():
            yield from problems(each, inner[1], f"{where}.{name}")
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]):
            yield f"{where} is {value!r}, and not a {kind}"
    elif kind in models():
        yield from problems_of_fields(value, models()[kind], where)


def problems_of_fields(value: Document, model: Model, where: str) -> Iterator[str]:
    yield from (f"{where} has no {name}" for name in model.required - value.keys())
    for name, each in value.items():
        if name in model.types:
            yield from problems(each, model.types[name], f"{where}.{name}")
        else:
            yield f"{where}.{name} is unknown"


@needs_models
@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_has_only_fields_that_kserve_knows(kind):
    assert [*problems(one("kserve", kind), OBJECTS[kind], kind)] == []


@needs_models
def test_what_kserve_does_not_know_is_found():
    spec = {"containers": [], "protocolVersion": "v2", "multiModel": "no"}
    found = problems({"spec": spec}, OBJECTS["ServingRuntime"], "it")
    assert [*found] == [
        "it.spec.protocolVersion is unknown",
        "it.spec.multiModel is 'no', and not a bool",
    ]
    assert [*problems({"spec": {}}, OBJECTS["ServingRuntime"], "it")] == [
        "it.spec has no containers"
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_runtime_is_a_pod_to_kubernetes(version):
    spec = one("kserve", "ServingRuntime")["spec"]
    pod = {"containers": spec["containers"], "volumes": spec["volumes"]}
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": pod}
    kubernetes_validate.validate(document, version, strict=True)
