"""The instructions of a Dockerfile."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction, with its continuation lines joined."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    def assignments(self) -> dict[str, str]:
        """The values that ENV or ARG assigns, by name; an ARG without a value has an empty one."""
        return {name: value for name, _, value in (word.partition("=") for word in self.words)}


def read_dockerfile(path: Path) -> list[Instruction]:
    """Return every instruction, in order."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in lines if line.strip()]
