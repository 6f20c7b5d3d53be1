"""Scenarios in which documents run: ``<!-- run: NAME -->`` uses the fixture ``scenario_NAME``."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import boto3
import pytest

from peterrec.model.spec import BackboneSpec, HeadKind
from peterrec_client import Client
from tests.e2e.running import free_port, running_server
from tests.service.random_bundles import Workshop
from tests.service.sources.servers import s3_server

ITEMS = [f"article-{number:04d}" for number in range(336)]
SPEC = BackboneSpec(item_count=len(ITEMS), channels=16, dilations=(1, 4), max_len=50)


@dataclass(frozen=True)
class DemoTask:
    """A task of `make demo`, here with random weights."""

    kind: HeadKind
    names: tuple[str, ...]


TASKS = {
    "gender": DemoTask("classification", ("female", "male")),
    "age_group": DemoTask("classification", ("18-29", "30-44", "45-59", "60+")),
    "interests": DemoTask("tags", ("camping", "cooking", "gaming", "gardening", "music")),
    "monthly_spend": DemoTask("value", ("monthly_spend",)),
    "recommendations": DemoTask("ranking", tuple(f"product-{n:04d}" for n in range(96))),
}


@dataclass(frozen=True)
class Ground:
    """The environment variables and files of a scenario, by name."""

    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


@pytest.fixture(scope="session")
def scenario_shell() -> Ground:
    """An empty folder and the ``peterrec`` command."""
    return Ground()


@pytest.fixture
def scenario_tutorial(tmp_path) -> Iterator[Ground]:
    """An empty folder; a server that a block starts in it, on free ports, is ended at last.

    Its process id is in `server.pid`.
    """
    port, metrics_port = free_port(), free_port()
    yield Ground(
        {
            "PETERREC_PORT": str(port),
            "PETERREC_METRICS_PORT": str(metrics_port),
            "PETERREC_URL": f"http://127.0.0.1:{port}",
        }
    )
    pid = tmp_path / "server.pid"
    with suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(pid.read_text()), signal.SIGTERM)


@pytest.fixture(scope="session")
def scenario_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A server with the demo's tasks; `gender.bundle` and `gender-2.bundle` are in the folder.

    `PETERREC_URL`, `PETERREC_API_KEY`, `PETERREC_METRICS_URL` and `PETERREC_GRPC_ADDRESS` are
    set. All documents share the
    server, so a document must not change a task that others use; it pushes under a new name.
    """
    folder = tmp_path_factory.mktemp("documents")
    workshop = Workshop(folder / "backbone", SPEC, ITEMS)
    bundles = {f"{name}.bundle": make_bundle(workshop, task, 1) for name, task in TASKS.items()}
    for name, content in bundles.items():
        (folder / name).write_bytes(content)
    with running_server(workshop.folder, folder / "server", workers=1, grpc_port=0) as server:
        with Client(server.url, server.key) as client:
            for task in TASKS:
                client.push(task, folder / f"{task}.bundle")
        yield Ground(
            {
                "PETERREC_URL": server.url,
                "PETERREC_API_KEY": server.key,
                "PETERREC_METRICS_URL": f"http://127.0.0.1:{server.metrics_port}/metrics",
                "PETERREC_GRPC_ADDRESS": server.grpc_address,
            },
            {
                "gender.bundle": bundles["gender.bundle"],
                "recommendations.bundle": bundles["recommendations.bundle"],
                "gender-2.bundle": make_bundle(workshop, TASKS["gender"], 2),
            },
        )


@pytest.fixture(scope="session")
def scenario_sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A server that fetches from `s3://models/{tenant}/`, and a store with a bundle there."""
    folder = tmp_path_factory.mktemp("sources")
    workshop = Workshop(folder / "backbone", SPEC, ITEMS)
    bundle = make_bundle(workshop, TASKS["gender"], 1)
    with s3_server(folder) as store, pytest.MonkeyPatch.context() as patch:
        credentials = {
            "AWS_ENDPOINT_URL_S3": store,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in credentials.items():
            patch.setenv(name, value)
        client = boto3.session.Session().client("s3")
        client.create_bucket(Bucket="models")
        client.put_object(Bucket="models", Key="default/gender.bundle", Body=bundle)
        sources = "s3://models/{tenant}/"
        with running_server(
            workshop.folder, folder / "server", workers=1, bundle_sources=sources
        ) as server:
            yield Ground(
                {**credentials, "PETERREC_URL": server.url, "PETERREC_API_KEY": server.key}
            )


def make_bundle(workshop: Workshop, task: DemoTask, seed: int) -> bytes:
    """Make a bundle of random weights whose outputs have the task's names."""
    return workshop.bundle(task.kind, seed, outputs=len(task.names), names=task.names)
