"""The compose file, the image and their configuration fit each other and the server."""

import re
from pathlib import Path, PurePosixPath

import pytest

from peterrec.service.processes.supervisor import DEVICE_STOP_TIMEOUT_S, WORKER_STOP_MARGIN_S
from peterrec.service.settings import PREFIX, Settings
from tests.docker.compose_runner import Document, read_compose
from tests.docker.dockerfile import read_dockerfile
from tests.docker.images import read_image
from tests.docker.queries import ROOT

COMPOSE = read_compose(ROOT / "docker-compose.yml", {})
SERVICES: dict[str, Document] = COMPOSE["services"]
SERVICE, GPU = SERVICES["peterrec"], SERVICES["peterrec-gpu"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
DOCKERFILE = read_dockerfile(ROOT / SERVICE["build"]["dockerfile"])
PROMETHEUS = read_compose(ROOT / "docker" / "prometheus" / "prometheus.yml", {})
DEFAULTS = Settings.model_fields


DOCKERFILE_STAGES = [i.words[-1] for i in DOCKERFILE if i.name == "FROM"]
IMAGE = read_image(ROOT / SERVICE["build"]["dockerfile"])
ENVIRONMENT = IMAGE.environment


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


@pytest.mark.parametrize("service", [SERVICE, GPU], ids=["cpu", "gpu"])
def test_every_variable_of_the_service_is_a_setting(service):
    given = {*service["environment"], *ENVIRONMENT}
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
            assert name in {"peterrec", "peterrec-gpu"} or port.startswith("127.0.0.1:")
    assert "ports" not in SERVICES["redis"]


def test_every_mounted_file_and_every_configured_path_exists():
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
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
    found = on_host("grafana", "/etc/grafana/provisioning/dashboards/peterrec.yml")
    providers = read_compose(found, {})
    for provider in providers["providers"]:
        assert list(on_host("grafana", provider["options"]["path"]).glob("*.json"))


def test_grafana_reads_from_the_prometheus_of_the_compose_file():
    path = ROOT / "docker/grafana/provisioning/datasources/prometheus.yml"
    document = read_compose(path, {})
    assert [source["url"] for source in document["datasources"]] == ["http://prometheus:9090"]
    assert SERVICES["prometheus"]["ports"][0].endswith(":9090")


def test_named_volumes_are_declared_and_used():
    mounted = {v.split(":")[0] for service in SERVICES.values() for v in service["volumes"]}
    named = {source for source in mounted if not source.startswith((".", "/", "$"))}
    assert named == set(COMPOSE["volumes"])


def test_the_backbone_is_mounted_read_only_where_the_server_looks_for_it():
    where = ENVIRONMENT["PETERREC_BACKBONE_DIR"]
    assert f"backbone:{where}:ro" in SERVICE["volumes"]
    assert any(v.endswith(f":{ENVIRONMENT['PETERREC_DATA_DIR']}") for v in SERVICE["volumes"])
    for writer in ("demo-backbone", "train"):
        assert f"backbone:{where}" in SERVICES[writer]["volumes"]


def test_what_ends_restarts_only_if_it_failed_and_what_stays_always():
    ending = {"demo-backbone": "on-failure", "train": "no"}
    for name, service in SERVICES.items():
        assert service["restart"] == ending.get(name, "unless-stopped")


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_waits_for_what_it_needs(name):
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        assert needed in SERVICES
        ends = needed == "demo-backbone"
        assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")
        profiles = SERVICES[needed].get("profiles")
        assert profiles == SERVICES[name].get("profiles") or how.get("required") is (
            False if profiles else None
        )


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_that_stays_has_a_health_check(name):
    service = SERVICES[name]
    assert "healthcheck" in service or (service["build"] and IMAGE.health)


@pytest.mark.parametrize("name", OURS)
def test_our_containers_have_no_power_and_a_root_that_nobody_writes(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == f"{IMAGE.user}:{IMAGE.user}"
    assert IMAGE.user != 0


def test_volumes_that_our_containers_write_are_where_the_image_lets_everybody_write():
    for name in OURS:
        for volume in SERVICES[name]["volumes"]:
            source, target = volume.split(":")[:2]
            assert source.startswith("./") or target in IMAGE.open_folders


@pytest.mark.parametrize("name", SERVICES)
def test_images_have_public_names_without_a_host(name):
    image = SERVICES[name]["image"]
    first, _, rest = image.partition("/")
    assert not (rest and ("." in first or ":" in first))
    assert name in OURS or re.search(r":v?\d+\.\d+", image)


def test_redis_keeps_what_it_was_told():
    command = SERVICES["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_nobody_enters_grafana_without_a_password():
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    # Grafana asks whoever signs in by its own default for another one, and loopback is its port.
    assert environment["GF_SECURITY_ADMIN_PASSWORD"] == "admin"
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["grafana"]["ports"])


def test_the_example_of_the_environment_has_every_variable_with_its_default():
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    assert set(used) == set(re.findall(r"\$\{(\w+)", text))  # each has a default
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert example == {**used, "BACKBONE_DIR": ""}  # the default is a volume, and no folder


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
    assert "os.environ['PETERREC_PORT'] + '/readyz'" in instructions("HEALTHCHECK")[0]


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


@pytest.mark.parametrize("name", OURS)
def test_build_arguments_and_targets_are_the_dockerfiles(name):
    known = {arg for i in DOCKERFILE if i.name == "ARG" for arg in i.assignments()}
    stages = {i.words[-1] for i in DOCKERFILE if i.name == "FROM"}
    assert set(SERVICES[name]["build"]["args"]) <= known
    assert SERVICES[name]["build"]["target"] in stages


def test_defaults_of_build_arguments_are_written_once():
    """What the compose file says is what the Dockerfile says by itself."""
    own = {k: v for i in DOCKERFILE if i.name == "ARG" for k, v in i.assignments().items()}
    for name, value in SERVICE["build"]["args"].items():
        assert (value or "") == own[name]


def test_the_cpu_image_is_the_default_and_what_it_runs_comes_from_the_lock_file():
    assert DOCKERFILE_STAGES[-1] == "cpu"
    runs = [i.text for i in DOCKERFILE if i.name == "RUN" and "${INSTALL}" in i.text]
    assert len(runs) == 4
    (install,) = [i.text for i in DOCKERFILE if i.name == "ENV" and "INSTALL=" in i.text]
    assert "--constraint requirements.lock" in install


def test_the_image_names_its_licence_version_revision_and_list_of_parts():
    labels = {k: v for i in DOCKERFILE if i.name == "LABEL" for k, v in i.assignments().items()}
    names = ("title", "description", "licenses", "version", "revision")
    assert {f"org.opencontainers.image.{name}" for name in names} < set(labels)
    assert labels["io.peterrec.sbom"] in instructions_of_environment()


def instructions_of_environment() -> str:
    return "\n".join(instructions("ENV"))


def test_the_gpus_replica_is_found_by_the_same_name_and_asks_for_one_gpu():
    assert GPU["networks"]["default"]["aliases"] == ["peterrec"]
    (device,) = GPU["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert GPU["environment"] == {**SERVICE["environment"], "PETERREC_DEVICE": "cuda"}
    assert GPU["build"]["target"] == "cuda"
