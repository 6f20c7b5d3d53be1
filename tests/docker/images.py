"""What the service's image says about how it runs, read from its Dockerfile.

In the place of the image's file system stand the packages that run the tests.
"""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.confined import Mount
from tests.docker.dockerfile import Instruction, read_dockerfile
from tests.docker.queries import ROOT


@dataclass(frozen=True)
class Image:
    """What an image says about how it runs."""

    environment: Mapping[str, str] = field(default_factory=dict)
    user: int = 0
    folder: str = "/"
    entry: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    open_folders: tuple[str, ...] = ()
    """Folders that everybody may write, as a named volume takes them over."""


def read_image(dockerfile: Path) -> Image:
    """What the stage `runtime` of the service's Dockerfile says."""
    stage = stage_of(read_dockerfile(dockerfile), "runtime")

    def last(name: str) -> str:
        return [each.text for each in stage if each.name == name][-1]

    environment = {k: v for e in stage if e.name == "ENV" for k, v in e.assignments().items()}
    made = [each.text for each in stage if each.name == "RUN" and "mkdir -m 1777" in each.text]
    return Image(
        {**environment, "PATH": environment["PATH"].replace("$PATH", "/usr/bin:/bin")},
        int(last("USER").split(":")[0]),
        last("WORKDIR"),
        tuple(json.loads(last("ENTRYPOINT"))),
        tuple(json.loads(last("CMD"))),
        tuple(json.loads(last("HEALTHCHECK").partition("CMD ")[2])),
        tuple(word for text in made for word in text.split() if word.startswith("/")),
    )


def stage_of(instructions: list[Instruction], name: str) -> list[Instruction]:
    """The instructions of one stage."""
    starts = [at for at, each in enumerate(instructions) if each.name == "FROM"]
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        if instructions[start].words[-1] == name:
            return instructions[start:end]
    raise AssertionError(f"no stage {name}")


def write_programs(folder: Path) -> None:
    """Write what the image has in /opt/peterrec/bin."""
    folder.mkdir()
    paths = ":".join(path for path in sys.path if path)
    python = f"exec env PYTHONPATH={shlex.quote(paths)} {shlex.quote(sys.executable)}"
    for name, words in {"python": python, "peterrec": f"{python} -P -m peterrec"}.items():
        (folder / name).write_text(f'#!/bin/sh\n{words} "$@"\n')
        (folder / name).chmod(0o755)


def programs_of_service(folder: Path) -> list[Mount]:
    """Return the mounts that bring what `write_programs` wrote, and what it needs."""
    packages = [Path(sys.prefix), Path(sys.base_prefix), ROOT]
    return [Mount(folder, "/opt/peterrec/bin"), *map(Mount, dict.fromkeys(packages))]
