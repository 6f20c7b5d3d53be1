"""How a server starts, and how it refuses to."""

import os
import socket
import subprocess
import sys
from contextlib import closing

import pytest

from tests.e2e.conftest import push
from tests.e2e.running import free_port, running_server


def serve(**settings: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment |= {f"PETERREC_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-P", "-m", "peterrec", "serve"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_a_given_registry_and_no_authentication_need_neither_redis_nor_key_of_ours(
    workshop, tmp_path, redis_url, redis_prefix
):
    settings = {
        "redis_url": redis_url,
        "redis_prefix": redis_prefix,
        "auth": "off",
        "max_queue_rows": 2,
    }
    with (
        running_server(workshop.folder, tmp_path, **settings) as server,
        server.client() as client,
    ):
        assert server.key == ""
        assert not [c for c in server.children() if "redis" in " ".join(c.cmdline())]
        push(client, "open", workshop.bundle("value", seed=1))
        assert client.post("/tasks/open/predict", json={"history": []}).status_code == 200
        refused = client.post("/tasks/open/predict", json={"instances": [{"history": []}] * 3})
    assert (refused.status_code, refused.json()["code"]) == (413, "too_many_rows")
    assert "PETERREC_MAX_QUEUE_ROWS" in refused.json()["hint"]
    assert refused.json()["retryable"] is False


def test_authentication_can_not_be_off_where_others_can_reach_it(workshop, tmp_path):
    failed = serve(backbone_dir=workshop.folder, data_dir=tmp_path, auth="off", host="0.0.0.0")
    assert failed.returncode == 1
    assert failed.stderr.startswith("settings_invalid")


def test_a_taken_port_is_told(workshop, tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        failed = serve(backbone_dir=workshop.folder, data_dir=tmp_path, port=port)
    assert failed.returncode == 1
    assert failed.stderr.startswith("address_in_use")


def test_a_data_directory_in_use_is_told(server, workshop):
    failed = serve(
        backbone_dir=workshop.folder,
        data_dir=server.folder / "data",
        port=free_port(),
        metrics_port=free_port(),
    )
    assert failed.returncode == 1
    assert "data_directory_in_use" in failed.stderr


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_that_is_no_backbone_is_told(tmp_path, folder):
    failed = serve(backbone_dir=tmp_path / folder, data_dir=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("backbone_folder_invalid")


def test_a_server_whose_weights_can_not_be_read_gives_up(workshop, tmp_path):
    for file in workshop.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "backbone.safetensors").write_bytes(b"broken")
    failed = serve(
        backbone_dir=tmp_path, data_dir=tmp_path, port=free_port(), metrics_port=free_port()
    )
    assert failed.returncode == 1
    assert "tensor_file_invalid" in failed.stderr
    assert "never_ready" in failed.stderr
