"""The command that looks at a server's surroundings."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from peterrec.model.errors import PeterRecError
from peterrec.service.cli.registry import in_registry, registry_address
from peterrec.service.cli.server_options import ExitStatus, print_json, print_table
from peterrec.service.cli.serving import Backbone, DataDir, Device, Host, Port, RedisUrl
from peterrec.service.cli.shared_options import AsJson

if TYPE_CHECKING:
    from peterrec.service.processes.examination import Finding
    from peterrec.service.settings import Settings


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("doctor")(doctor)


def doctor(
    backbone: Backbone = None,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Check what a server needs: settings, backbone, disk, device, ports, Redis, clock, registry.

    It reads the settings as `serve` does, changes nothing, and says what to do. The exit status is
    1 if something is bad.
    """
    from dataclasses import asdict

    from peterrec.service.settings import read_settings

    settings = read_settings(
        backbone_dir=tuple(backbone or ()) or None,
        host=host,
        port=port,
        data_dir=data_dir,
        redis_url=redis_url,
        device=device,
    )
    found = [*_examined(settings)]
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        rows = tuple((each.check, each.state, each.what, each.todo) for each in found)
        print_table(("check", "", "found", "to do"), rows)
    if any(each.state == "bad" for each in found):
        raise typer.Exit(ExitStatus.REFUSED)


def _examined(settings: "Settings") -> "Iterator[Finding]":
    from peterrec.patches.errors import RegistryUnavailable
    from peterrec.service.processes.examination import (
        Finding,
        examine,
        examine_registry,
        failed,
    )

    yield from examine(settings)
    if settings.redis_url is None and not (settings.data_dir / "redis").exists():
        what = f"there is none in {settings.data_dir} yet; the first `serve` makes it"
        yield Finding("registry", "good", what)
        return
    try:
        with registry_address(settings.redis_url, settings.data_dir) as url:
            yield from in_registry(
                url, settings.redis_prefix, lambda registry: examine_registry(registry, settings)
            )
    except RegistryUnavailable as error:
        todo = "Start Redis, or correct PETERREC_REDIS_URL; a server that runs goes on without it."
        yield Finding("redis", "bad", error.message, todo)
    except PeterRecError as error:
        yield failed("registry", error)
