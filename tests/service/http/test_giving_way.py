"""Between the steps of a registration, waiting requests are run."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from peterrec.model.files.backbone_info import BackboneInfo
from peterrec.patches.registry.registry import Registry
from peterrec.service.http.auth import Authenticator
from peterrec.service.http.context import AdminContext
from peterrec.service.predict.device_link import BoundRow, DeviceLink
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.messages import Row
from tests.service.messages import DIGEST_A, full_update


@pytest.mark.parametrize("is_busy", [True, False])
async def test_other_work_runs_between_two_steps_only_while_a_request_waits(
    registry: Registry, tmp_path: Path, is_busy: bool
) -> None:
    table = TaskTable()
    link = DeviceLink(Path("nowhere"), table, max_rows=1, on_update=lambda update: None)
    info = cast(BackboneInfo, None)
    context = AdminContext(table, Authenticator(False), link, registry, info, tmp_path, 1)
    await link.start()
    table.apply(full_update(epoch=1))
    link.state.heard_at = asyncio.get_running_loop().time()
    row = BoundRow(Row(7, b""), DIGEST_A)
    request = asyncio.create_task(link.predict([row], link.state.heard_at + 60))
    if is_busy:
        await asyncio.sleep(0)
    else:
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    assert link.is_busy is is_busy
    has_run: list[bool] = []
    asyncio.get_running_loop().call_soon(has_run.append, True)
    await context.give_way()
    assert bool(has_run) is is_busy
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await link.close()
