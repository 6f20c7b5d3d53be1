"""A Ray cluster of several nodes on this machine, which the tests of a module share."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from ray._private.node import Node

NODES = 2
STORE_BYTES = 100_000_000
"""Memory of a node's object store: a little more than Ray's least."""

CALM = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
}
"""What Ray's processes need not do in a test."""

CLOSE_S = 30


class RayCluster:
    """A head without a core, and nodes with one core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._folder = tempfile.mkdtemp(prefix="ray-")  # pytest's own are too long for sockets
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "temp_dir": self._folder,
                "num_cpus": 0,
                "object_store_memory": STORE_BYTES,
                "include_dashboard": False,
            },
        )
        self.address: str = self._cluster.address
        try:
            self._nodes: list[Node] = []
            self.restore()
        except BaseException:
            self.close()
            raise

    def kill_node(self, name: str) -> None:
        """Kill a node that runs such an actor, with all its processes."""
        lost = next(node for node in self._nodes if _named(name, _raylet(node)))
        self._nodes.remove(lost)
        self._cluster.remove_node(lost, allow_graceful=False)

    def restore(self) -> None:
        """Start a node in the place of each that was killed."""
        while len(self._nodes) < NODES:
            self._nodes.append(self._add())

    def workers(self, name: str) -> list[psutil.Process]:
        """The processes of actors whose names contain this."""
        return _named(name, psutil.Process())

    def close(self) -> None:
        """End all of Ray's processes, and remove what they have written."""
        started = psutil.Process().children(recursive=True)
        self._cluster.shutdown()
        _, left = psutil.wait_procs([p for p in started if _is_rays(p)], timeout=CLOSE_S)
        for process in left:
            process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        assert not left, f"Ray left {[_title(each) for each in left]}"

    def _add(self) -> "Node":
        return self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


def _raylet(node: "Node") -> psutil.Process:
    (raylet,) = node.all_processes["raylet"]
    return psutil.Process(raylet.process.pid)


def _named(name: str, parent: psutil.Process) -> list[psutil.Process]:
    return [each for each in parent.children(recursive=True) if name in _title(each)]


def _is_rays(process: psutil.Process) -> bool:
    title = _title(process)
    return "ray::" in title or "/site-packages/ray/" in title


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    if importlib.util.find_spec("ray") is None:  # it reads its environment when it is imported
        pytest.skip("Ray is not installed: pip install 'peterrec-serving[ray]'")
    source = Path(__file__).parents[3]
    imported = os.pathsep.join(map(str, (source / "src", source / "clients" / "python", source)))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**CALM, "PYTHONPATH": imported}.items():
            patch.setenv(name, value)
        cluster = RayCluster()
        try:
            yield cluster
        finally:
            cluster.close()
