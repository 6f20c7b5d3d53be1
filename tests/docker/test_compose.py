"""The compose file, the image and their configuration fit each other and the server."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from peterrec.service.processes.supervisor import DEVICE_STOP_TIMEOUT_S, WORKER_STOP_MARGIN_S
from peterrec.service.settings import PREFIX, Settings
from tests.docker.dockerfile import read_dockerfile
from tests.docker.queries import ROOT

Document = dict[str, Any]  # Any: YAML


def read_yaml(path: Path) -> Document:
    """A YAML file, with the defaults of its ``${VARIABLE:-default}``."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", path.read_text(encoding="utf-8"))
    document: Document = yaml.safe_load(text)
    return document


COMPOSE = read_yaml(ROOT / "docker-compose.yml")
GPU = read_yaml(ROOT / "docker-compose.gpu.yml")
SERVICES: dict[str, Document] = COMPOSE["services"]
SERVICE = SERVICES["peterrec"]
DOCKERFILE = read_dockerfile(ROOT / SERVICE["build"]["dockerfile"])
PROMETHEUS = read_yaml(ROOT / "docker" / "prometheus" / "prometheus.yml")
DEFAULTS = Settings.model_fields


def image_environment() -> dict[str, str]:
    last_stage = DOCKERFILE[max(n for n, i in enumerate(DOCKERFILE) if i.name == "FROM") :]
    found: dict[str, str] = {}
    for instruction in last_stage:
        if instruction.name == "ENV":
            found |= instruction.assignments()
    return found


ENVIRONMENT = image_environment()


def instructions(name: str) -> list[str]:
    return [instruction.text for instruction in DOCKERFILE if instruction.name == name]


def on_host(service: str, path: str) -> Path:
    """Where a file of a container lies in this repository."""
    for volume in SERVICES[service]["volumes"]:
        source, target = volume.split(":")[:2]
        if source.startswith("./") and PurePosixPath(path).is_relative_to(target):
            return ROOT / source / PurePosixPath(path).relative_to(target)
    raise AssertionError(f"{path} is not mounted into {service}")


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


@pytest.mark.parametrize("document", [COMPOSE, GPU], ids=["cpu", "gpu"])
def test_every_variable_of_the_service_is_a_setting(document):
    given = {*document["services"]["peterrec"]["environment"], *ENVIRONMENT}
    ours = {name for name in given if name.startswith(PREFIX)}
    assert ours
    assert {name.removeprefix(PREFIX).lower() for name in ours} <= set(DEFAULTS)


def test_the_images_environment_and_the_compose_files_are_valid_settings(monkeypatch):
    for name, value in {**ENVIRONMENT, **SERVICE["environment"]}.items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.auth == "on"
    assert settings.redis_url == "redis://redis:6379/0"


def test_ports_agree():
    api, metrics = DEFAULTS["port"].default, DEFAULTS["metrics_port"].default
    assert ENVIRONMENT["PETERREC_PORT"] == str(api)
    assert ENVIRONMENT["PETERREC_METRICS_PORT"] == str(metrics)
    assert instructions("EXPOSE") == [f"{api} {metrics}"]
    assert [port.rpartition(":")[2] for port in SERVICE["ports"]] == [str(api)]
    (job,) = [job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == "peterrec"]
    (discovery,) = job["dns_sd_configs"]
    assert discovery["port"] == metrics
    assert set(discovery["names"]) <= set(SERVICES)


def test_only_the_api_can_be_reached_from_outside():
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert name == "peterrec" or port.startswith("127.0.0.1:")
    assert "ports" not in SERVICES["redis"]


def test_every_mounted_file_and_every_configured_path_exists():
    for service in SERVICES.values():
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            assert PurePosixPath(target).is_absolute()
            assert not source.startswith("./docker/") or (ROOT / source).exists()
    (config,) = [c for c in SERVICES["prometheus"]["command"] if c.startswith("--config.file=")]
    assert on_host("prometheus", config.removeprefix("--config.file=")).is_file()
    for pattern in PROMETHEUS["rule_files"]:
        folder = on_host("prometheus", str(PurePosixPath(pattern).parent))
        assert list(folder.glob(PurePosixPath(pattern).name))
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert on_host("grafana", home).is_file()
    providers = read_yaml(on_host("grafana", "/etc/grafana/provisioning/dashboards/peterrec.yml"))
    for provider in providers["providers"]:
        assert list(on_host("grafana", provider["options"]["path"]).glob("*.json"))


def test_grafana_reads_from_the_prometheus_of_the_compose_file():
    document = read_yaml(ROOT / "docker/grafana/provisioning/datasources/prometheus.yml")
    assert [source["url"] for source in document["datasources"]] == ["http://prometheus:9090"]
    assert SERVICES["prometheus"]["ports"][0].endswith(":9090")


def test_named_volumes_are_declared_and_used():
    mounted = {v.split(":")[0] for service in SERVICES.values() for v in service["volumes"]}
    named = {source for source in mounted if not source.startswith((".", "/", "$"))}
    assert named == set(COMPOSE["volumes"])


def test_the_backbone_is_mounted_read_only_where_the_server_looks_for_it():
    (mount,) = [v for v in SERVICE["volumes"] if v.startswith("./backbone")]
    assert mount.endswith(f":{ENVIRONMENT['PETERREC_BACKBONE_DIR']}:ro")
    assert any(v.endswith(f":{ENVIRONMENT['PETERREC_DATA_DIR']}") for v in SERVICE["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_restarts_and_waits_for_healthy_ones(name):
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service or (name == "peterrec" and instructions("HEALTHCHECK"))
    for needed, how in service.get("depends_on", {}).items():
        assert needed in SERVICES
        assert how == {"condition": "service_healthy"}


@pytest.mark.parametrize("name", SERVICES)
def test_images_have_public_names_without_a_host(name):
    image = SERVICES[name]["image"]
    first, _, rest = image.partition("/")
    assert not (rest and ("." in first or ":" in first))
    assert name == "peterrec" or re.search(r":v?\d+\.\d+", image)


def test_redis_keeps_what_it_was_told():
    command = SERVICES["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_nobody_enters_grafana_without_a_password():
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert environment["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_ADMIN_PASSWORD:?")


def test_the_example_of_the_environment_has_every_variable_and_no_password():
    text = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docker-compose*.yml"))
    used = set(re.findall(r"\$\{(\w+)", text))
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(example) == used
    assert example["GRAFANA_ADMIN_PASSWORD"] == ""


def test_there_is_time_to_drain():
    needed = (
        DEFAULTS["drain_delay_s"].default
        + DEFAULTS["drain_timeout_s"].default
        + WORKER_STOP_MARGIN_S
        + DEVICE_STOP_TIMEOUT_S
    )
    assert seconds(SERVICE["stop_grace_period"]) > needed


def test_the_image_runs_without_root_and_stops_on_sigterm():
    assert instructions("USER")[-1].split(":")[0] not in {"root", "0"}
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert f":{DEFAULTS['port'].default}/readyz" in instructions("HEALTHCHECK")[0]


def test_the_image_holds_no_secret():
    named = {name for i in DOCKERFILE if i.name in {"ARG", "ENV"} for name in i.assignments()}
    assert not [name for name in named if re.search(r"KEY|TOKEN|SECRET|PASSWORD", name)]


def test_the_image_is_built_of_files_that_exist_and_are_not_ignored():
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = [i.words for i in DOCKERFILE if i.name == "COPY" and not i.text.startswith("--from")]
    sources = {source.removeprefix("./") for words in copied for source in words[:-1]}
    assert sources == kept
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize("document", [COMPOSE, GPU], ids=["cpu", "gpu"])
def test_build_arguments_are_the_images(document):
    known = {name for i in DOCKERFILE if i.name == "ARG" for name in i.assignments()}
    assert set(document["services"]["peterrec"]["build"]["args"]) <= known


def test_the_gpu_file_only_adds_to_services_that_exist():
    assert set(GPU["services"]) <= set(SERVICES)
    (device,) = GPU["services"]["peterrec"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert GPU["services"]["peterrec"]["environment"]["PETERREC_DEVICE"] == "cuda"
