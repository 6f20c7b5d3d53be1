"""The compose file's profile `train`: from own files to a served task, as its guide says."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from peterrec.model.data.sample_data import write_sample_data
from tests import confined
from tests.docker.compose_runner import Stack, missing_programs, stack

WHY_NOT = confined.why_not() or (
    f"not installed: {', '.join(missing_programs())}" if missing_programs() else ""
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
EVENTS = ("--interactions", "/data/histories.parquet", "--order-column", "position")
START_S = 300


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The services that are always there and those of `train`, none of which runs yet."""
    folder: Path = tmp_path_factory.mktemp("train")
    data = folder / "own"
    write_sample_data(data, 300, 0)
    with stack(folder, "train", DATA_DIR=str(data)) as services:
        yield services


def train(running: Stack, *words: str) -> str:
    """`docker compose run --rm train …`; returns what it wrote."""
    container = running.run("train", *words)
    assert container.process.wait(START_S) == 0, container.text
    return container.text


def test_own_files_become_a_served_task(running):
    small = ("--channels", "8", "--epochs", "1", "--device", "cpu")
    train(running, "pretrain", *EVENTS, "--out", "/backbone", *small)
    running.up("redis", "peterrec", within_s=START_S)
    asked = ("--redis-url", "redis://redis:6379/0", "--name", "ops")
    scopes = ("--scope", "operator", "--scope", "admin", "--scope", "predict")
    made = running.exec("peterrec", "peterrec", "keys", "create", *asked, *scopes)
    key = next(word for word in made.stdout.split() if word.startswith("prk_"))
    answers = ("--labels", "/data/users.parquet", "--label-column", "gender")
    kind = ("--kind", "classification", "--epochs", "1")
    train(
        running,
        "finetune",
        "--backbone",
        "/backbone",
        *EVENTS,
        *kind,
        *answers,
        "--out",
        "g.bundle",
    )
    running.services["train"]["environment"]["PETERREC_API_KEY"] = key  # `export PETERREC_API_KEY=`
    train(running, "push", "g.bundle", "--task", "gender")
    served = running.get("http://peterrec:8000/tasks", **{"X-API-Key": key})
    assert [each["task"] for each in served] == ["gender"]
