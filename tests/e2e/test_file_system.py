"""What commands and servers say when the file system refuses, and what they leave behind."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from peterrec.model.data.sample_data import write_sample_data
from peterrec.model.files.backbone_folder import load_backbone
from peterrec.model.files.backbone_info import SPEC
from peterrec.model.training.pretrain.state import CHECKPOINT
from tests.e2e.running import free_port, running_server
from tests.unprivileged import obey_permissions
from tests.waiting import eventually

PROGRAM = (sys.executable, "-P", "-m", "peterrec")
TINY = ("--channels", "8", "--dilations", "1,2", "--max-len", "10")
EVENTS = ("--interactions", "shop/histories.parquet")
LABELS = ("--labels", "shop/users.parquet", "--label-column", "gender")
PARTIAL = ".partial"


class Place:
    """A folder with a small shop, a file, and a folder that may not be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_sample_data(folder / "shop", users=60)
        (folder / "file").write_bytes(b"no bundle")
        (folder / "locked").mkdir()
        (folder / "locked" / "secret").touch(mode=0)
        (folder / "locked").chmod(0o555)

    def start(
        self,
        *arguments: str,
        stdout: int = subprocess.PIPE,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=obey_permissions,
        )

    def refused(self, *arguments: str) -> str:
        """Run a command that must fail; returns what it said."""
        process = self.start(*arguments)
        _, said = process.communicate(timeout=100)
        assert process.returncode == 1, said
        assert "Traceback" not in said
        assert "Error" not in said
        return said

    def run(self, *arguments: str, **environment: str) -> str:
        process = self.start(*arguments, environment=environment)
        out, said = process.communicate(timeout=100)
        assert process.returncode == 0, said
        return out

    def left_over(self) -> list[Path]:
        return [*self.folder.rglob(f"*{PARTIAL}*")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "sample-data": ("--out",),
    "convert": ("convert", "movielens", "shop", "--out"),
    "download": ("download", "movielens-1m", "--out"),
    "data-info": (*EVENTS, "--plot"),
    "pretrain": (*EVENTS, "--out"),
    "finetune": (*EVENTS, *LABELS, "--kind", "classification", "--backbone", "shop", "--out"),
    "compare": (*EVENTS, *LABELS, "--out"),
    "import-reference": ("file", "--out"),
    "keygen": ("--out",),
    "registry export": (),
    "demo": ("--out",),
}
"""The arguments of every command that writes, up to the path."""


def writing(command: str, path: str) -> list[str]:
    arguments = OUTPUTS[command]
    words = [] if arguments[:1] == (command,) else command.split()
    return [*words, *arguments, f"{path}.png" if command == "data-info" else path]


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_in_a_read_only_folder_is_refused_before_the_work(place, command):
    said = place.refused(*writing(command, "locked/out"))
    assert said.startswith("path_not_permitted: locked")
    assert "permission denied" in said
    assert [path.name for path in (place.folder / "locked").iterdir()] == ["secret"]


@pytest.mark.parametrize("command", ["sample-data", "pretrain", "demo"])
def test_an_output_folder_that_is_a_file_is_refused(place, command):
    said = place.refused(*writing(command, "file"))
    assert said.startswith("path_unusable: file can't be written: it is a file, not a folder")
    assert (place.folder / "file").read_bytes() == b"no bundle"


@pytest.mark.parametrize("command", ["keygen", "data-info"])
def test_an_output_through_a_file_is_refused(place, command):
    said = place.refused(*writing(command, "file/out"))
    assert said.startswith("path_unusable: file/out")
    assert "file is a file, not a folder" in said


INPUTS: Mapping[str, tuple[str, ...]] = {
    "inspect": (),
    "verify": (),
    "diff": (),
    "sign": (),
    "finetune-many": ("--backbone", "shop", *EVENTS, "--tasks"),
    "compare": ("--out", "compared", "--task-list"),
    "registry import": ("--data-dir", "imported"),
    "push": ("--task", "gender", "--url", "http://127.0.0.1:9"),
}
"""The arguments of commands that read a file which is no table, up to its path."""


def reading(command: str, path: str) -> list[str]:
    after = {"diff": ["file"], "sign": ["--key", "file"]}
    return [*command.split(), *INPUTS[command], path, *after.get(command, [])]


@pytest.mark.parametrize("command", INPUTS)
def test_a_folder_in_the_place_of_a_file_is_named(place, command):
    said = place.refused(*reading(command, "shop"))
    assert "path_unusable: shop can't be read: it is a folder" in said


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        ("nowhere", "path_missing: nowhere can't be read: it does not exist"),
        ("locked/secret", "path_not_permitted: locked/secret can't be read: permission denied"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "verify", "sign"])
def test_an_input_that_cannot_be_read_is_named(place, command, path, refusal):
    assert refusal in place.refused(*reading(command, path))


@pytest.mark.parametrize("path", ["file", "nowhere"])
def test_a_server_without_a_backbone_folder_says_so(place, path):
    said = place.refused("serve", "--backbone", path)
    assert said.startswith(f"backbone_folder_invalid: {path}/spec.json ")


@pytest.mark.parametrize(
    ("path", "code"), [("file", "path_unusable"), ("locked", "path_not_permitted")]
)
def test_a_server_without_a_data_folder_says_so(place, workshop, path, code):
    ports = ("--port", str(free_port()), "--metrics-port", str(free_port()))
    folder = str(workshop.folder)
    said = place.refused("serve", "--backbone", folder, "--data-dir", path, *ports)
    assert said.startswith(f"{code}: {path} can't be written")


def test_an_output_that_cannot_be_written_is_a_failure(place):
    with Path("/dev/full").open("w") as full:
        process = place.start("sample-data", "--out", "full-output", stdout=full.fileno())
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "\ndisk_full: the command's output" in f"\n{said}"
    assert "Exception ignored" not in said


def test_a_name_that_is_no_utf_8_is_refused_and_shown(place):
    said = place.refused("sample-data", "--out", os.fsdecode(b"a\xffb"))
    assert r"a\xffb" in said


def test_a_current_folder_that_was_removed_is_told(place, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && exec {' '.join(PROGRAM)} sample-data --out shop"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("path_missing: shop can't be written: the current folder no")


@pytest.mark.slow
def test_neither_home_nor_a_folder_for_temporary_files_is_needed(place):
    locked = place.folder / "locked"
    stranger = {"HOME": str(locked / "home"), "TMPDIR": str(locked / "tmp")}
    place.run("sample-data", "--out", "strange", "--users", "60", **stranger)
    events = ("--interactions", "strange/histories.parquet")
    place.run("pretrain", *events, *TINY, "--epochs", "1", "--out", "strange-backbone", **stranger)
    place.run("data-info", *events, "--plot", "strange.png", **stranger)
    assert (place.folder / "strange.png").stat().st_size


def pretraining(out: str, *more: str) -> list[str]:
    training = ("--epochs", "30", "--patience", "30")
    return ["pretrain", *EVENTS, *TINY, *training, "--out", out, *more]


@pytest.mark.slow
def test_a_disk_that_fills_during_pretraining_keeps_what_resume_goes_on_from(place):
    place.run(*pretraining("whole"))
    process = place.start(*pretraining("filled"))
    checkpoint = place.folder / "filled" / CHECKPOINT
    eventually(checkpoint.exists, 60)
    size = checkpoint.stat().st_size
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
    _, said = process.communicate(timeout=60)
    refusal = said[said.index("disk_full: ") :]
    assert process.returncode == 1
    assert "bytes are wanted" in refusal
    assert "filled: go on from it with --resume" in refusal
    assert "Traceback" not in refusal
    assert checkpoint.stat().st_size == size
    assert not (place.folder / "filled" / SPEC).exists()
    assert place.left_over() == []
    place.run(*pretraining("filled", "--resume"))
    whole, filled = (load_backbone(place.folder / name) for name in ("whole", "filled"))
    assert filled.fingerprint == whole.fingerprint


@pytest.mark.slow
def test_an_interrupted_pretraining_says_what_is_kept(place):
    process = place.start(*pretraining("interrupted"))
    eventually((place.folder / "interrupted" / CHECKPOINT).exists, 60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: the command was interrupted.\n" in said
    assert "interrupted: go on from it with --resume" in said
    assert "Traceback" not in said


def test_no_command_left_an_unfinished_file(place):
    assert place.left_over() == []


@pytest.mark.slow
def test_a_server_serves_where_only_its_data_folder_can_be_written(workshop, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file"))
    with running_server(workshop.folder, tmp_path / "server", auth="off") as server:
        assert server.is_ready()
