"""Why a worker is not ready."""

import time
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from peterrec.model.files.backbone_info import BackboneInfo, read_info
from peterrec.patches.registry.registry import Registry
from peterrec.service.http.auth import Authenticator
from peterrec.service.http.context import AdminContext
from peterrec.service.http.routes import health
from peterrec.service.predict.device_link import DeviceLink
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.messages import Status
from tests.service.messages import full_update
from tests.service.random_bundles import Workshop


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> BackboneInfo:
    folder = tmp_path_factory.mktemp("backbone")
    Workshop(folder)
    return read_info(folder)


@pytest.mark.parametrize(
    ("is_ready", "synced_at", "reasons"),
    [(False, 0.0, ["registry_not_read"]), (False, 9.0, ["loading"]), (True, 9.0, [])],
)
async def test_bundles_that_still_load_are_not_mistaken_for_an_unread_registry(
    backbone: BackboneInfo,
    registry: Registry,
    tmp_path: Path,
    is_ready: bool,
    synced_at: float,
    reasons: list[str],
) -> None:
    table = TaskTable()
    link = DeviceLink(Path("nowhere"), table, max_rows=1, on_update=lambda update: None)
    app = FastAPI()
    context = AdminContext(
        table, Authenticator(is_required=False), link, registry, backbone, tmp_path, 1 << 20
    )
    app.state.admin = context
    app.include_router(health.router)
    table.apply(full_update(epoch=1))
    link.state.heard_at, link.state.is_ready = time.monotonic(), is_ready
    link.state.status = Status(1, is_ready, 3, synced_at, 0)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        answer = await client.get("/readyz")
    assert answer.json()["reasons"] == reasons
    assert (answer.status_code == 200) == (not reasons)
    assert answer.json()["prod_bundles"]["registered"] == 0
