"""A small runner of the compose file where there is no Docker: its commands, mounts, ports,
variables, users, dependencies and health checks, with the programs of this machine.

Each container is a process in a root file system of its own (`tests/confined.py`); all share one
network without a way out, a list of their names, and a name server. The service's image is read
from its Dockerfile: variables, user, folder, entry point, command and health check. In the place of
its file system stand the packages that run the tests. Redis and Prometheus are Debian's.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.confined import Cell, Mount
from tests.docker.images import Image, programs_of_service, read_image, write_programs
from tests.docker.network import Network
from tests.docker.queries import ROOT

Document = dict[str, Any]  # Any: YAML

NAME_SERVER = "127.0.0.11"
"""Where a container finds Docker's name server, and ours."""

PUBLIC_IMAGES = {
    "redis": ((), 999, "/data"),
    "prom/prometheus": (("prometheus",), 65534, "/prometheus"),
}
"""Entry points, users and folders of images that are not ours, as their Dockerfiles have them."""

NEEDED = ("redis-server", "redis-cli", "prometheus", "dnsmasq", "ip", "nsenter", "wget")


def missing_programs() -> list[str]:
    """What of this machine's programs the runner lacks."""
    return [name for name in NEEDED if shutil.which(name) is None]


def read_compose(path: Path, variables: Mapping[str, str]) -> Document:
    """The compose file, with variables or their defaults in the place of ``${NAME:-default}``."""

    def value(found: re.Match[str]) -> str:
        return variables.get(found[1]) or found[2]

    text = re.sub(r"\$\{(\w+):-([^}]*)\}", value, path.read_text(encoding="utf-8"))
    document: Document = yaml.safe_load(text)
    return document


@dataclass
class Container:
    """A service of the compose file that runs, or ran."""

    name: str
    cell: Cell
    process: "subprocess.Popen[bytes]"
    log: Path
    health: tuple[str, ...]

    @property
    def text(self) -> str:
        """What it has written."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class Stack:
    """The services of the compose file, by name; a context manager that ends what it started."""

    def __init__(self, folder: Path, profiles: frozenset[str], **variables: str) -> None:
        self.document = read_compose(ROOT / "docker-compose.yml", variables)
        self.services: Mapping[str, Document] = {
            name: service
            for name, service in self.document["services"].items()
            if not service.get("profiles") or profiles.intersection(service["profiles"])
        }
        self._folder = folder
        self.network = Network(folder, tuple(self.services))
        self._ours = read_image(ROOT / "docker" / "Dockerfile")
        self.containers: dict[str, Container] = {}

    def __enter__(self) -> "Stack":
        self.network.__enter__()
        (self._folder / "resolv.conf").write_text(f"nameserver {NAME_SERVER}\n")
        write_programs(self._folder / "bin")
        hosts = [f"--address=/{name}/127.0.0.1" for name in self.services]
        self._names = subprocess.Popen(
            [
                *self.network.enter(),
                *("dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=root"),
                *(f"--listen-address={NAME_SERVER}", "--bind-interfaces", "--conf-file=/dev/null"),
                *("--pid-file=", *hosts),
            ]
        )
        return self

    def __exit__(self, *error: object) -> None:
        for name in [*self.containers]:
            self.stop(name)
        self._names.terminate()
        self._names.wait(10)
        self.network.__exit__(*error)

    def up(self, *names: str, within_s: float) -> None:
        """Start services, what they depend on before; return when all are healthy or complete."""
        for name in names:
            self._start(name, within_s)
        for name in names:
            if self.containers[name].health:
                self.wait_until_healthy(name, within_s)

    def _start(self, name: str, within_s: float) -> None:
        if name in self.containers:
            return
        for needed, how in self.services[name].get("depends_on", {}).items():
            if needed not in self.services:
                assert how["required"] is False, f"{name} needs {needed}"
                continue
            self._start(needed, within_s)
            if how["condition"] == "service_healthy":
                self.wait_until_healthy(needed, within_s)
            else:
                assert how["condition"] == "service_completed_successfully"
                assert self.containers[needed].process.wait(within_s) == 0, self.logs()
        self.run(name)

    def run(self, name: str, *command: str) -> Container:
        """Start one service, with another command if one is given."""
        service = self.services[name]
        image, user = self._image(service)
        cell = self._cell(name, service, image, user)
        words = command or tuple(map(str, service.get("command", image.command)))
        log = self._folder / f"{name}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [*self.network.enter(), *cell.enter(), *image.entry, *words], stdout=out, stderr=out
            )
        health = service.get("healthcheck", {})
        test = () if health.get("disable") else tuple(health.get("test", ["CMD", *image.health]))
        assert test[:1] in ((), ("CMD",))
        self.containers[name] = Container(name, cell, process, log, test[1:])
        return self.containers[name]

    def wait_until_healthy(self, name: str, within_s: float) -> None:
        """Wait until the health check of a service says so."""
        deadline = time.monotonic() + within_s
        container = self.containers[name]
        while (asked := self.exec(name, *container.health)).returncode != 0:
            assert container.process.poll() is None, f"{name} has ended:\n{self.logs()}"
            assert time.monotonic() < deadline, f"{name} is not healthy: {asked}\n{self.logs()}"
            time.sleep(0.5)

    def exec(self, name: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in a container, as its user and with its variables."""
        container = self.containers[name]
        identity = ["setpriv", "--reuid", str(container.cell.user), "--clear-groups"]
        pid = str(container.process.pid)
        enter = ["nsenter", "--target", pid, "--net", "--mount", "--root", "--wd"]
        return subprocess.run(
            [*enter, *identity, "env", *container.cell.environment, *command],
            capture_output=True,
            text=True,
            check=False,
        )

    def get(self, url: str, **headers: str) -> Any:
        """Read a JSON document within the network."""
        return json.loads(self.network.get(url, **headers))

    def stop(self, name: str) -> int:
        """End a service as `docker compose stop` does; return its exit status."""
        container = self.containers.pop(name)
        patience = float(str(self.services[name].get("stop_grace_period", "10s")).rstrip("s"))
        container.process.terminate()
        try:
            return container.process.wait(patience)
        except subprocess.TimeoutExpired:
            container.process.kill()
            container.process.wait()
            return -9

    def logs(self) -> str:
        """The last lines of every container."""
        return "\n".join(f"--- {c.name}\n{c.text[-2000:]}" for c in self.containers.values())

    def _image(self, service: Document) -> tuple[Image, int]:
        if "build" in service:
            user = str(service.get("user", self._ours.user)).split(":")[0]
            return self._ours, int(user)
        entry, user_id, folder = PUBLIC_IMAGES[service["image"].rpartition(":")[0]]
        return Image({"PATH": "/usr/bin:/bin"}, user_id, folder, entry), user_id

    def _cell(self, name: str, service: Document, image: Image, user: int) -> Cell:
        root = self._folder / "roots" / name
        root.mkdir(parents=True, exist_ok=True)
        mounts = [Mount(self._folder / f, f"/etc/{f}") for f in ("hosts", "resolv.conf")]
        mounts += [Mount(None, path) for path in (*image.open_folders, *service.get("tmpfs", []))]
        mounts += [self._volume(text, image, user) for text in service.get("volumes", [])]
        variables = {**image.environment, **service.get("environment", {})}
        if image is self._ours:
            mounts += programs_of_service(self._folder / "bin")
            variables |= {"OMP_NUM_THREADS": "1"}
        words = ("-i", *(f"{key}={value}" for key, value in variables.items()))
        read_only = bool(service.get("read_only"))
        return Cell(root, tuple(mounts), image.folder, user, user, words, read_only)

    def _volume(self, text: str, image: Image, user: int) -> Mount:
        source, target, *options = text.split(":")
        if source.startswith((".", "/")):
            return Mount(ROOT / source, target, is_writable="ro" not in options)
        assert source in self.document["volumes"]
        folder = self._folder / "volumes" / source
        if not folder.exists():
            folder.mkdir(parents=True)
            if target in image.open_folders:
                folder.chmod(0o1777)
            else:
                os.chown(folder, user, user)
        return Mount(folder, target, is_writable="ro" not in options)


@contextmanager
def stack(folder: Path, *profiles: str, **variables: str) -> Iterator[Stack]:
    """The compose file in a folder of its own, which others may enter."""
    folder.chmod(0o755)
    with Stack(folder, frozenset(profiles), **variables) as running:
        yield running
