"""Files of an earlier version (README.md) still load, verify and give their recorded answers."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from peterrec.service.cli.main import build_app
from tests.e2e.running import free_port, running_server

KEPT = Path(__file__).parent

BUNDLES = {
    "classification-reader": "backbone",
    "tags-serial1": "backbone",
    "ranking-inner-skip": "backbone",
    "value-branches": "backbone",
    "signed": "backbone",
    "embedded": "backbone-embedded",
}
"""Every kept bundle and the backbone that it was trained on."""

SHOP_KEY = "prk_a3fd2387398b_07753165169eee789da851901179edf8f90ce617f4f87406"
"""The plain text of the archive's key for the task ``club``; it opens nothing else."""

TOLERANCE = 1e-4
"""Largest difference of a recorded score or value that another machine's kernels may make."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), list(map(str, arguments)))


def recorded_answers() -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = json.loads((KEPT / "answers.json").read_text())
    return answers


def predict(client: httpx.Client, task: str, history: list[str]) -> httpx.Response:
    body = {"history": history, "parameters": {"version": "prod"}}
    return client.post(f"/tasks/{task}/predict", json=body)


def require_recorded_answers(client: httpx.Client, tasks: list[str]) -> None:
    recorded = [answer for answer in recorded_answers() if answer["task"] in tasks]
    for expected in recorded:
        answer = predict(client, expected["task"], expected["history"]).json()
        assert answer["digest"] == expected["digest"]
        require_close(answer["predictions"][0], expected["prediction"])


def require_close(found: object, expected: object) -> None:
    """Equal but for floats, which may differ by the tolerance."""
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert found.keys() >= expected.keys()
        for name, value in expected.items():
            require_close(found[name], value)
    elif isinstance(expected, list):
        assert isinstance(found, list)
        for one, other in zip(found, expected, strict=True):
            require_close(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=TOLERANCE)
    else:
        assert found == expected


@pytest.mark.parametrize(("bundle", "backbone"), BUNDLES.items())
def test_a_kept_bundle_passes_verification_and_its_probes_on_its_backbone(
    bundle: str, backbone: str
) -> None:
    done = run("verify", KEPT / f"{bundle}.bundle", "--backbone", KEPT / backbone)
    assert done.exit_code == 0, done.output


def test_a_kept_signature_is_trusted_and_a_bundle_without_it_is_not() -> None:
    trust = ("--backbone", KEPT / "backbone", "--trusted-key", KEPT / "ann.pub")
    assert run("verify", KEPT / "signed.bundle", *trust).exit_code == 0
    assert run("verify", KEPT / "classification-reader.bundle", *trust).exit_code == 1


def test_a_kept_checkpoint_resumes_close_to_its_uninterrupted_run(tmp_path: Path) -> None:
    """Not to its weights: that run cut long histories at the same places in every epoch."""
    shutil.copy(KEPT / "unfinished" / "checkpoint.safetensors", tmp_path)
    data = ("--interactions", KEPT / "events.csv")
    sizes = ("--channels", 8, "--dilations", "1,2", "--max-len", 8, "--batch-size", 16)
    length = ("--epochs", 3, "--patience", 3)
    done = run("pretrain", *data, *sizes, *length, "--out", tmp_path, "--resume")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "training.json").read_text())
    assert len(record["epochs"]) == 3
    found = load_file(tmp_path / "backbone.safetensors")
    expected = load_file(KEPT / "unfinished" / "finished.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-3, err_msg=name)


@pytest.mark.slow
def test_a_kept_archive_is_imported_and_served_with_its_recorded_answers(
    tmp_path: Path, redis_url: str, redis_prefix: str
) -> None:
    target = ("--redis-url", redis_url, "--redis-prefix", redis_prefix)
    done = run("registry", "import", KEPT / "registry.tar", *target)
    assert done.exit_code == 0, done.output
    serving = running_server(
        KEPT / "backbone",
        tmp_path,
        redis_url=redis_url,
        redis_prefix=redis_prefix,
        workers=1,
        auth="off",
    )
    with serving as server, server.client() as api:
        require_recorded_answers(api, ["club", "picks", "labels"])
        (club,) = [task for task in api.get("/tasks").json() if task["task"] == "club"]
        assert club["aliases"].keys() == {"prod", "next"}
        value = (KEPT / "value-branches.bundle").read_bytes()
        assert api.post("/tasks/score/versions", content=value).status_code == 201


@pytest.mark.slow
def test_a_server_without_its_redis_serves_the_kept_local_copy(tmp_path: Path) -> None:
    cache = tmp_path / "data" / "cache"
    cache.mkdir(parents=True)
    shutil.copy(KEPT / "cache" / "snapshot.json", cache)
    digests = {answer["digest"].removeprefix("sha256:") for answer in recorded_answers()}
    for bundle in KEPT.glob("*.bundle"):
        shutil.copy(bundle, cache / f"{hashlib.sha256(bundle.read_bytes()).hexdigest()}.bundle")
    assert digests <= {path.stem for path in cache.glob("*.bundle")}
    away = f"redis://127.0.0.1:{free_port()}"
    with (
        running_server(KEPT / "backbone", tmp_path, redis_url=away, workers=1) as server,
        server.client(SHOP_KEY) as api,
    ):
        require_recorded_answers(api, ["club"])
        assert predict(api, "picks", ["i03"]).status_code == 403
