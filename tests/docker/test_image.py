"""The image of the service, started: `make image` builds it, with Docker, podman or buildah.

Without a Docker daemon the image's root file system is entered directly, as a user that it does
not know, and can't be written but for the volume. Names and values are those of the image itself.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import confined
from tests.confined import STRANGER, Cell, Mount
from tests.e2e.conftest import push
from tests.e2e.running import RunningServer, Start, running_server
from tests.service.random_bundles import Workshop

NAME = os.environ.get("PETERREC_TEST_IMAGE", "peterrec-serving")
MOST_BYTES = 1_600_000_000
CHOSEN = ("PETERREC_HOST", "PETERREC_PORT", "PETERREC_METRICS_PORT")
"""Variables of the image that a test sets, as all share this machine's network."""
SBOM = "opt/peterrec/sbom.cdx.json"


def buildah(*words: str) -> str:
    command = ["buildah", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


WHY_NOT = confined.why_not() or ("" if shutil.which("buildah") else "buildah is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # it compiles all kernels
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]


@dataclass(frozen=True)
class Image:
    """A container of the image: its root file system, and how it says that it is started."""

    root: Path
    config: dict[str, Any]  # Any: JSON


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    try:
        container = buildah("from", "--pull-never", NAME)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip(f"there is no image {NAME}; `make image CONTAINERS=buildah` builds it")
    try:
        config = json.loads(buildah("inspect", "--type", "image", NAME))["Docker"]["config"]
        yield Image(Path(buildah("mount", container)), config)
    finally:
        buildah("umount", container)
        buildah("rm", container)


def test_the_cpu_image_is_small(image):
    size = sum(path.lstat().st_size for path in image.root.rglob("*") if not path.is_dir())
    assert size < MOST_BYTES


def test_the_image_lists_its_parts_and_has_no_installer(image):
    parts = {part["name"] for part in json.loads((image.root / SBOM).read_text())["components"]}
    assert {"torch", "numpy", "peterrec-serving", "peterrec-client"} <= parts
    assert not {"pip", "pytest", "ruff", "cyclonedx-bom"} & parts
    assert not list((image.root / "opt" / "peterrec" / "bin").glob("pip*"))
    assert image.config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def server(
    image: Image, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """The image's own command, as a user without a name, with two mounts."""
    folder = tmp_path_factory.mktemp("image")
    data, root = folder / "volume", folder / "root"
    data.mkdir()
    root.mkdir()
    os.chown(data, STRANGER, STRANGER)
    workshop.folder.chmod(0o755)
    named = [each for each in image.config["Env"] if each.split("=")[0] not in CHOSEN]
    cell = Cell(
        root,
        (Mount(workshop.folder, "/backbone"), Mount(data, "/var/lib/peterrec", is_writable=True)),
        image.config["WorkingDir"],
        environment=(*hidden(), *named),
        image=image.root,
    )
    assert image.config["Cmd"] == ["serve"]
    start = Start([*cell.enter(), *image.config["Entrypoint"]], within_s=400)
    with running_server(Path("/backbone"), folder, start=start, host="127.0.0.1") as server:
        yield server


def hidden() -> list[str]:
    """The words that keep the variables of the tests away, but for settings of the server."""
    kept = ("PETERREC_", "OMP_")
    return [word for name in os.environ if not name.startswith(kept) for word in ("-u", name)]


def test_the_image_serves_a_prediction_as_any_user_on_a_root_that_cannot_be_written(
    server, workshop
):
    with server.client() as client:
        push(client, "gender", workshop.bundle("classification", seed=1))
        answer = client.post("/tasks/gender/predict", json={"history": ["item-1", "item-2"]})
    assert answer.status_code == 200, answer.text
    assert server.child("device").uids().real == STRANGER
    assert "Traceback" not in server.log


def test_the_images_health_check_says_that_it_is_healthy(server, image):
    kind, *command = image.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    pid = str(server.process.pid)
    variables = [*image.config["Env"], f"PETERREC_PORT={server.port}"]
    enter = ["nsenter", "--target", pid, "--mount", "--root", "--wd"]
    identity = ["setpriv", "--reuid", str(STRANGER), "--clear-groups", "env", "-i", *variables]
    subprocess.run([*enter, *identity, *command], check=True)
