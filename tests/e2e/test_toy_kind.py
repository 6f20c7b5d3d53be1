"""A kind of head, added by the four files of docs/extending.md alone: trained, served and read."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from peterrec.model.kinds import KINDS
from tests.docs.snippets import blocks_of
from tests.e2e.running import running_server

ROOT = Path(__file__).parent.parent.parent
PRETRAIN = ("--channels", "8", "--dilations", "1,4", "--max-len", "20", "--epochs", "1")
FINETUNE = ("--bottleneck", "4", "--epochs", "2")

READ = """
import sys
from peterrec_client import Client
from peterrec_client.kinds.count import CountPrediction

with Client(sys.argv[1], sys.argv[2]) as client:
    answer = client.predict("visits", ["article-0001", "article-0002"])
    card = client.predict_user(["article-0001"])
    assert type(answer) is type(card.results["visits"]) is CountPrediction
    print(answer.count, answer.used_items)
"""

COMPARE_TABLES = """
from peterrec.model.kinds import KINDS
from peterrec.model.training.objectives import OBJECTIVES
from peterrec.service.predict.kinds import ANSWERS
from peterrec_client import kinds
assert "count" in KINDS
assert list(KINDS) == list(OBJECTIVES) == list(ANSWERS) == list(kinds.KINDS)
"""


def documented_files() -> dict[str, str]:
    """The code of the section on head kinds, by the path in its first line."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = text.partition("## A head kind")[2].partition("\n## ")[0]
    found = (re.match(r"# (\S+)\n", block.text) for block in blocks_of(section, "extending.md"))
    return {match.group(1): match.string for match in found if match}


def mirror(source: Path, target: Path, added: dict[Path, str]) -> None:
    """A folder of links to what ``source`` has, with some files added anywhere below it."""
    target.mkdir()
    for entry in source.iterdir():
        below = {p.relative_to(entry.name): c for p, c in added.items() if p.parts[0] == entry.name}
        if below:
            mirror(entry, target / entry.name, below)
        elif entry.name != "__pycache__":
            (target / entry.name).symlink_to(entry.resolve())
    for path, code in added.items():
        if len(path.parts) == 1:
            (target / path).write_text(code, encoding="utf-8")


@pytest.fixture
def extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of this test import the project with the four files in it."""
    added: dict[str, dict[Path, str]] = {"src/peterrec": {}, "clients/python/peterrec_client": {}}
    for path, code in documented_files().items():
        if path.startswith("clients/"):
            place = Path(path).relative_to("clients/python/peterrec_client")
            added["clients/python/peterrec_client"][place] = code
        else:
            added["src/peterrec"][Path(path)] = code
    packages = tmp_path / "packages"
    packages.mkdir()
    for source, files in added.items():
        mirror(ROOT / source, packages / Path(source).name, files)
    monkeypatch.setenv("PYTHONPATH", str(packages))


def python(*arguments: str | Path) -> str:
    """What a child process prints; the test fails with its error if it fails."""
    command = [sys.executable, "-P", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


def peterrec(*arguments: str | Path) -> str:
    return python("-m", "peterrec", *arguments)


def test_the_document_has_one_file_for_each_side():
    assert sorted(documented_files()) == [
        "clients/python/peterrec_client/kinds/count.py",
        "model/kinds/count.py",
        "model/training/objectives/count.py",
        "service/predict/kinds/count.py",
    ]
    assert "count" not in KINDS


@pytest.mark.slow
@pytest.mark.timeout(400)  # it trains the parts of a task and starts a server
@pytest.mark.usefixtures("extended")
def test_a_kind_of_four_files_is_trained_packed_verified_served_and_read(tmp_path):
    python("-c", COMPARE_TABLES)
    shop, backbone = tmp_path / "shop", tmp_path / "backbone"
    first, second = tmp_path / "first.bundle", tmp_path / "second.bundle"
    peterrec("sample-data", "--out", shop, "--users", "200")
    events = ("--interactions", shop / "histories.parquet", "--order-column", "position")
    answers = ("--labels", shop / "users.parquet", "--label-column", "monthly_spend")
    peterrec("pretrain", *events, "--out", backbone, *PRETRAIN)
    for bundle, seed in ((first, "1"), (second, "2")):
        task = ("--backbone", backbone, "--kind", "count", "--seed", seed, "--out", bundle)
        trained = peterrec("finetune", *task, *events, *answers, *FINETUNE)
        assert "log_likelihood" in trained
    tested = ("--bundle", first, "--backbone", backbone, "--part", "test")
    evaluated = peterrec("evaluate", *tested, *events, *answers, "--json")
    assert {"log_likelihood", "mae"} <= set(json.loads(evaluated)["metrics"])
    assert "its probes too" in peterrec("verify", first, "--backbone", backbone)
    assert "count, 1 outputs" in peterrec("inspect", first)
    compared = peterrec("diff", first, second, "--backbone", backbone)
    assert "difference in relation to the larger count" in compared
    with running_server(backbone, tmp_path / "server") as server:
        peterrec(*("push", first, "--task", "visits", "--url", server.url, "--api-key", server.key))
        with server.client() as api:
            schemas = api.get("/openapi.json").json()["components"]["schemas"]
            asked = api.post("/tasks/visits/predict", json={"history": ["article-0001"]}).json()
        count, used = python("-c", READ, server.url, server.key).split()
    assert schemas["CountPrediction"]["properties"]["count"]["description"] == "The expected count."
    assert asked["kind"] == asked["predictions"][0]["kind"] == "count"
    assert float(count) > 0
    assert used == "2"
