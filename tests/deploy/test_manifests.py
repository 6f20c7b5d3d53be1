"""The manifests keep the schemas of Kubernetes and of what extends it, and its strictest rules."""

import shutil
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from peterrec.service.settings import Settings
from tests.deploy import rules
from tests.deploy.manifests import (
    FOLDER,
    SCHEMAS,
    SETS,
    VERSIONS,
    Document,
    errors_of_others,
    kustomize,
    of_kubernetes,
    one,
    render,
)
from tests.docker.images import read_image
from tests.docker.queries import ROOT

needs_kustomize = pytest.mark.skipif(not kustomize(), reason="needs kustomize or kubectl")
OVERLAYS = [name for name in SETS if name.startswith("overlays/")]


def containers(name: str) -> list[tuple[Document, Document]]:
    """The pod and the container of everything in a set that runs one."""
    found = []
    for each in render(name):
        if each["kind"] == "Deployment":
            pod = each["spec"]["template"]["spec"]
            found += [(pod, container) for container in pod["containers"]]
        if each["kind"] == "ServingRuntime":
            found += [(each["spec"], container) for container in each["spec"]["containers"]]
    return found


def test_the_operators_rules_are_those_of_prometheus():
    assert rules.FILE.read_text(encoding="utf-8") == rules.text()


@needs_kustomize
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_keeps_the_schema_of_kubernetes(name, version):
    documents = [each for each in render(name) if of_kubernetes(each)]
    for each in documents:
        kubernetes_validate.validate(each, version, strict=True)
    assert documents or name == "kserve"


@needs_kustomize
@pytest.mark.skipif(
    shutil.which("node") is None or not (SCHEMAS / "node_modules").exists(),
    reason="needs node, and `npm install` in tests/deploy/schemas",
)
def test_every_other_object_keeps_the_schema_of_its_operator():
    others = {
        f"{each['kind']}/{each['metadata']['name']}": each
        for name in OVERLAYS
        for each in render(name)
        if not of_kubernetes(each)
    }
    assert errors_of_others([*others.values()]) == dict.fromkeys(others)
    assert set(others) == {
        "PrometheusRule/peterrec",
        "ScaledObject/peterrec",
        "ServiceMonitor/peterrec",
    }
    wrong = {**one("overlays/gpu", "ScaledObject"), "spec": {"triggers": "none"}}
    assert errors_of_others([wrong])["ScaledObject/peterrec"] is not None


@needs_kustomize
@pytest.mark.parametrize("name", SETS)
def test_every_pod_keeps_the_rules_of_restricted_pod_security(name):
    for pod, container in containers(name):
        both = {**pod.get("securityContext", {}), **container["securityContext"]}
        assert both["runAsNonRoot"] is True
        assert both["runAsUser"] > 0
        assert both["seccompProfile"] == {"type": "RuntimeDefault"}
        assert both["allowPrivilegeEscalation"] is False
        assert both["capabilities"] == {"drop": ["ALL"]}
        assert both["readOnlyRootFilesystem"] is True
        assert all("emptyDir" in volume for volume in pod["volumes"])


@needs_kustomize
@pytest.mark.parametrize("name", SETS)
def test_every_variable_is_a_setting_and_what_is_secret_is_named_only(name):
    known = {f"PETERREC_{field.upper()}" for field in Settings.model_fields}
    for _, container in containers(name):
        variables = {each["name"]: each for each in container.get("env", ())}
        assert set(variables) <= known
        if "PETERREC_REDIS_URL" in variables:
            assert "value" not in variables["PETERREC_REDIS_URL"]


@needs_kustomize
@pytest.mark.parametrize("name", OVERLAYS)
def test_the_service_and_its_probes_name_ports_that_the_image_has(name):
    image = read_image(ROOT / "docker" / "Dockerfile").environment
    container = one(name, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    ports = {each["name"]: str(each["containerPort"]) for each in container["ports"]}
    assert ports == {"http": image["PETERREC_PORT"], "metrics": image["PETERREC_METRICS_PORT"]}
    named = {each["targetPort"] for each in one(name, "Service")["spec"]["ports"]}
    named |= {
        container[kind]["httpGet"]["port"]
        for kind in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert named == {"http", "metrics"}


@needs_kustomize
@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pod_has_the_time_to_drain(name):
    spec = one(name, "Deployment")["spec"]["template"]["spec"]
    sleep_s = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    fields = Settings.model_fields
    drain_s = fields["drain_delay_s"].default + fields["drain_timeout_s"].default
    assert sleep_s + drain_s + 10 <= spec["terminationGracePeriodSeconds"]


@needs_kustomize
@pytest.mark.parametrize("name", OVERLAYS)
def test_what_selects_pods_selects_those_of_the_server(name):
    labels = one(name, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for each in render(name):
        spec = each.get("spec", {})
        if each["metadata"]["name"] != "peterrec" or each["kind"] == "ServiceMonitor":
            continue
        selector = spec.get("selector", spec.get("podSelector", {}))
        chosen = selector.get("matchLabels", selector)
        if chosen:
            assert chosen.items() <= labels.items(), each["kind"]


@needs_kustomize
def test_the_monitor_selects_the_service_and_the_job_is_the_dashboards():
    service, monitor = one("overlays/cpu", "Service"), one("overlays/cpu", "ServiceMonitor")
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["spec"]["jobLabel"]] == "peterrec"
    assert {each["port"] for each in monitor["spec"]["endpoints"]} <= {
        each["name"] for each in service["spec"]["ports"]
    }


@needs_kustomize
@pytest.mark.parametrize("name", ["overlays/cpu", "overlays/gpu"])
def test_who_scales_decides_on_the_number_of_replicas(name):
    assert "replicas" not in one(name, "Deployment")["spec"]
    kinds = ("HorizontalPodAutoscaler", "ScaledObject")
    scalers = [each["kind"] for each in render(name) if each["kind"] in kinds]
    assert len(scalers) == 1


def test_every_file_is_part_of_something():
    named: set[Path] = set()
    for path in FOLDER.rglob("kustomization.yaml"):
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
        patches = [each["path"] for each in own.get("patches", ()) if "path" in each]
        files = [*own.get("resources", ()), *patches]
        named |= {(path.parent / each).resolve() for each in files if each.endswith(".yaml")}
    present = {path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert present == named
