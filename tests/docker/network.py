"""A network without a way out that several containers share, and a list of their names."""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import eventually

GET = """
import sys, urllib.request as u
r = u.Request(sys.argv[1], headers=dict(a.split("=", 1) for a in sys.argv[2:]))
sys.stdout.buffer.write(u.urlopen(r, timeout=20).read())
"""


@dataclass
class Network:
    """All names are this machine's loopback address. A context manager, which ends it."""

    folder: Path
    names: tuple[str, ...]
    _holder: "subprocess.Popen[bytes]" = field(init=False)

    def __enter__(self) -> "Network":
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        eventually(self._has_begun)  # until then, commands would run in this machine's network
        assert self.inside("ip", "link", "set", "lo", "up").returncode == 0
        names = "".join(f"127.0.0.1 {name}\n" for name in ("localhost", *self.names))
        (self.folder / "hosts").write_text(names)
        return self

    def __exit__(self, *error: object) -> None:
        self._holder.terminate()
        self._holder.wait(10)

    def _has_begun(self) -> bool:
        own, holders = (Path(f"/proc/{pid}/ns/net") for pid in ("self", self._holder.pid))
        return own.readlink() != holders.readlink()

    def enter(self) -> list[str]:
        """The words before a command that has it run within the network."""
        return ["nsenter", "--target", str(self._holder.pid), "--net"]

    def inside(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command within the network."""
        words = [*self.enter(), *command]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    def get(self, url: str, **headers: str) -> str:
        """Read a page within the network; fails with what was said if the answer is an error."""
        given = [f"{name}={value}" for name, value in headers.items()]
        names = "|".join(map(re.escape, self.names))
        address = re.sub(rf"^http://({names}):", "http://127.0.0.1:", url)
        done = self.inside(sys.executable, "-c", GET, address, *given)
        assert done.returncode == 0, done.stderr
        return done.stdout
