"""Runs a pod of the manifests without a cluster, as a kubelet would: command, variables, secrets,
mounts, user, probes, the hook before the stop, and the grace period.

Each container is a process in a root file system of its own (`tests/confined.py`), in one network.
The service's image is read from its Dockerfile; Redis is this machine's.
"""

import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.confined import Cell, Mount
from tests.deploy.manifests import Document
from tests.docker.images import Image, programs_of_service, read_image
from tests.docker.network import Network
from tests.docker.queries import ROOT

NEEDED = ("redis-server", "redis-cli", "ip", "nsenter")
Secrets = Mapping[str, Mapping[str, str]]


def missing_programs() -> list[str]:
    """What of this machine's programs a pod lacks."""
    return [name for name in NEEDED if shutil.which(name) is None]


@dataclass
class Pod:
    """The only container of a pod, running."""

    spec: Document
    cell: Cell
    process: "subprocess.Popen[bytes]"
    log: Path
    network: Network

    @property
    def container(self) -> Document:
        """What the manifest says about the container."""
        container: Document = self.spec["containers"][0]
        return container

    @property
    def text(self) -> str:
        """What it has written."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def passes(self, kind: str) -> bool:
        """Ask a probe once."""
        probe = self.container[kind]
        if "exec" in probe:
            return self.exec(*probe["exec"]["command"]) == 0
        ports = {port.get("name"): port["containerPort"] for port in self.container["ports"]}
        port = ports.get(probe["httpGet"]["port"], probe["httpGet"]["port"])
        url = f"http://127.0.0.1:{port}{probe['httpGet']['path']}"
        asked = self.network.inside("curl", "--silent", "--fail", "--max-time", "5", url)
        return asked.returncode == 0

    def start_up(self) -> None:
        """Wait as long as the startup probe allows, then until it is ready."""
        for kind in ("startupProbe", "readinessProbe"):
            probe = self.container.get(kind)
            if probe is None:
                continue
            patience = int(probe.get("failureThreshold", 3)) if kind == "startupProbe" else 60
            for _ in range(patience):
                if self.passes(kind):
                    break
                assert self.process.poll() is None, self.text
                time.sleep(probe.get("periodSeconds", 10) if kind == "startupProbe" else 1)
            else:
                raise AssertionError(f"{kind} never passed:\n{self.text[-3000:]}")

    def exec(self, *command: str) -> int:
        """Run a command in the container, as its user; return its status."""
        pid = str(self.process.pid)
        enter = ["nsenter", "--target", pid, "--net", "--mount", "--root", "--wd"]
        identity = ["setpriv", "--reuid", str(self.cell.user), "--clear-groups"]
        words = [*enter, *identity, "env", *self.cell.environment, *command]
        return subprocess.run(words, capture_output=True, check=False).returncode

    def stop(self) -> int:
        """End it as a kubelet does: the hook, SIGTERM, and what is left of the grace period."""
        left_s = float(self.spec.get("terminationGracePeriodSeconds", 30))
        hook = self.container.get("lifecycle", {}).get("preStop", {})
        if "sleep" in hook:
            time.sleep(hook["sleep"]["seconds"])
            left_s -= hook["sleep"]["seconds"]
            assert self.process.poll() is None, self.text
        self.process.terminate()
        try:
            return self.process.wait(left_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return -9


@dataclass(frozen=True)
class Node:
    """Where pods run: a folder for what they write, a network, secrets, and a backbone."""

    folder: Path
    network: Network
    secrets: Secrets
    backbone: Path

    def run(self, name: str, spec: Document, *, is_service: bool = True) -> Pod:
        """Start the only container of a pod."""
        (container,) = spec["containers"]
        image = read_image(ROOT / "docker" / "Dockerfile") if is_service else Image({})
        cell = self._cell(name, spec, image, is_service=is_service)
        words = [*container.get("command", image.entry), *container.get("args", ())]
        if "command" not in container and "args" not in container:
            words += image.command
        log = self.folder / f"{name}.log"
        with log.open("ab") as out:
            command = [*self.network.enter(), *cell.enter(), *words]
            process = subprocess.Popen(command, stdout=out, stderr=out)
        return Pod(spec, cell, process, log, self.network)

    def _cell(self, name: str, spec: Document, image: Image, *, is_service: bool) -> Cell:
        (container,) = spec["containers"]
        both = {**spec.get("securityContext", {}), **container["securityContext"]}
        root = self.folder / "roots" / name
        root.mkdir(parents=True)
        mounts = [Mount(self.folder / "hosts", "/etc/hosts")]
        mounts += [self._mount(name, spec, each) for each in container["volumeMounts"]]
        variables = {"PATH": "/usr/bin:/bin", **image.environment}
        variables |= {each["name"]: self._value(each) for each in container.get("env", ())}
        if is_service:
            mounts += [*programs_of_service(self.folder / "bin")]
            mounts += [Mount(self.backbone, variables["PETERREC_BACKBONE_DIR"])]
            variables |= {"OMP_NUM_THREADS": "1"}
        words = ("-i", *(f"{key}={value}" for key, value in variables.items()))
        user, group = both["runAsUser"], both.get("runAsGroup", both["runAsUser"])
        read_only = bool(both["readOnlyRootFilesystem"])
        return Cell(root, tuple(mounts), image.folder, user, group, words, read_only)

    def _value(self, variable: Document) -> str:
        if "value" in variable:
            return str(variable["value"])
        reference = variable["valueFrom"]["secretKeyRef"]
        return self.secrets[reference["name"]][reference["key"]]

    def _mount(self, name: str, spec: Document, mount: Document) -> Mount:
        (volume,) = [each for each in spec["volumes"] if each["name"] == mount["name"]]
        assert "emptyDir" in volume
        folder = self.folder / "volumes" / name / mount["name"]
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        return Mount(folder, mount["mountPath"], is_writable=not mount.get("readOnly", False))
