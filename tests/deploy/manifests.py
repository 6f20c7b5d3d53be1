"""The manifests as `kubectl apply --kustomize` sends them, and what schemas say against them."""

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.docker.queries import ROOT

Document = dict[str, Any]  # Any: YAML

FOLDER = ROOT / "deploy" / "kubernetes"
SETS = ("overlays/cpu", "overlays/gpu", "overlays/dev", "kserve")
VERSIONS = ("1.32", "1.35")
"""Versions of Kubernetes whose schemas the manifests keep: the oldest promised, and a new one."""

SCHEMAS = Path(__file__).parent / "schemas"
"""Where `npm install` brings the schemas of what Kubernetes itself does not have."""


@functools.cache
def kustomize() -> list[str]:
    """The words of the command that renders a folder; empty if none is installed."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return ["kubectl", "kustomize"] if shutil.which("kubectl") else []


@functools.cache
def render(name: str) -> list[Document]:
    """The objects of one of `SETS`."""
    command = [*kustomize(), str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def one(name: str, kind: str, called: str = "peterrec") -> Document:
    """The object of a kind and name in one of `SETS`."""
    (found,) = [
        each for each in render(name) if (each["kind"], each["metadata"]["name"]) == (kind, called)
    ]
    return found


def of_kubernetes(document: Document) -> bool:
    """True if Kubernetes itself has this kind of object."""
    group = str(document["apiVersion"]).rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


def errors_of_others(documents: list[Document]) -> dict[str, Any]:
    """What the schemas of KEDA and the Prometheus operator say against objects, by name."""
    done = subprocess.run(
        ["node", str(SCHEMAS / "validate.mjs")],
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
