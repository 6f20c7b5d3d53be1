"""``peterrec`` run in a folder with modules of the same names as its own or the standard library's.

None of them may be imported, neither by a command nor by a process that it starts.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from peterrec.service.cli.main import build_app
from tests.e2e.conftest import push
from tests.e2e.running import Start, running_server

FILES = (
    "model.py",
    "patches.py",
    "peterrec.py",
    "service/__init__.py",
    "json.py",
    "random.py",
    "socket.py",
    "selectors.py",
    "numpy.py",
    "torch.py",
)
FOREIGN = """
with open({marker!r}, "w"):
    pass
raise ImportError("a module of the current folder was imported")
"""
INSTALLED = (str(Path(sys.executable).parent / "peterrec"),)
AS_MODULE = (sys.executable, "-P", "-m", "peterrec")
TINY = ("--channels", "8", "--dilations", "1,2", "--max-len", "10", "--epochs", "1")


class Folder:
    """A current folder full of foreign modules, each of which leaves a mark when it is imported."""

    def __init__(self, path: Path, marks: Path) -> None:
        self.path = path
        self._marks = marks
        marks.mkdir()
        for name in FILES:
            file = path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(FOREIGN.format(marker=str(marks / name.replace("/", "-"))))

    def imported(self) -> list[str]:
        return [mark.name for mark in self._marks.iterdir()]

    def run(self, program: tuple[str, ...], *arguments: str) -> str:
        """Run a command here and return what it printed; fail if it did."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*program, *arguments],
            cwd=self.path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "project", tmp_path / "marks")


def commands(command: Any, *words: str) -> Iterator[tuple[str, ...]]:
    """Every command of the program, hidden ones too, by the words that name it."""
    parts = getattr(command, "commands", {})
    if not parts:
        yield words
    for name, part in parts.items():
        yield from commands(part, *words, name)


def test_a_foreign_module_leaves_a_mark_where_python_looks_in_the_current_folder(folder):
    subprocess.run(
        [sys.executable, "-m", "peterrec"], cwd=folder.path, capture_output=True, check=False
    )
    subprocess.run(
        [sys.executable, "-c", "import model"], cwd=folder.path, capture_output=True, check=False
    )
    assert set(folder.imported()) & {"peterrec.py", "model.py"}


@pytest.mark.slow
@pytest.mark.timeout(300)  # it starts about forty programs
def test_no_command_imports_a_module_of_the_current_folder(folder):
    found = [*commands(typer.main.get_command(build_app()))]
    assert ("keys", "create") in found
    for words in found:
        assert "Usage" in folder.run(INSTALLED, *words, "--help")
    assert "Usage" in folder.run(AS_MODULE, "--help")
    assert folder.imported() == []


@pytest.mark.slow
def test_data_training_and_bundles_import_no_module_of_the_current_folder(
    folder, workshop, tmp_path
):
    (tmp_path / "gender.bundle").write_bytes(workshop.bundle("classification", seed=1))
    folder.run(INSTALLED, "sample-data", "--out", "shop", "--users", "60")
    folder.run(
        INSTALLED, "pretrain", "--interactions", "shop/histories.parquet", *TINY, "--out", "b"
    )
    assert "classification" in folder.run(INSTALLED, "inspect", str(tmp_path / "gender.bundle"))
    assert folder.imported() == []


def test_processes_that_training_spawns_import_no_module_of_the_current_folder(folder, tmp_path):
    script = tmp_path / "spawning.py"
    script.write_text(
        "import os\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from peterrec.service.system.program import import_nothing_from_current_folder\n"
        "if __name__ == '__main__':\n"
        "    import_nothing_from_current_folder()\n"
        "    with ProcessPoolExecutor(1, get_context('spawn')) as pool:\n"
        "        print(pool.submit(os.getcwd).result())\n"
    )
    assert folder.run((sys.executable,), str(script)).strip() == str(folder.path)
    assert folder.imported() == []


@pytest.mark.slow
@pytest.mark.parametrize("program", [INSTALLED, AS_MODULE], ids=["installed", "module"])
def test_a_server_and_its_processes_import_no_module_of_the_current_folder(
    folder, workshop, tmp_path, program
):
    start = Start(program, folder.path)
    with (
        running_server(workshop.folder, tmp_path / "server", start=start) as server,
        server.client() as client,
    ):
        push(client, "gender", workshop.bundle("classification", seed=1))
        assert client.post("/tasks/gender/predict", json={"history": []}).status_code == 200
        assert client.get("/readyz").status_code == 200
    assert folder.imported() == []
