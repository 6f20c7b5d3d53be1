"""Commands that run a server and talk to a running one."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from peterrec.model.errors import PeterRecError
from peterrec.service.cli.server_options import (
    DEFAULT_URL,
    ApiKey,
    AsJson,
    IfMatch,
    Url,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from peterrec.service.settings import Settings

Backbone = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder written by `peterrec pretrain`.")
]
Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="Port of the API.", show_default="8000")]
Workers = Annotated[int | None, typer.Option(help="HTTP workers.", show_default="by the cores")]
MetricsPort = Annotated[int | None, typer.Option(help="Port of /metrics.", show_default="9100")]
DataDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Embedded Redis and caches.", show_default="data")
]
RedisUrl = Annotated[
    str | None, typer.Option(help="The registry's Redis.", show_default="an embedded one")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Device.", show_default="auto")
]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads of a forward.", show_default="every core")
]
Auth = Annotated[
    Literal["on", "off"] | None, typer.Option(help="Off only on loopback.", show_default="on")
]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("serve")(serve)
    app.command("push")(push)
    keys = typer.Typer(help="API keys.", no_args_is_help=True)
    keys.command("create")(create_key)
    keys.command("list")(list_keys)
    keys.command("revoke")(revoke_key)
    app.add_typer(keys, name="keys")
    app.command("run-device", hidden=True)(run_device)
    app.command("run-worker", hidden=True)(run_worker)


def serve(
    backbone: Backbone = None,
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    metrics_port: MetricsPort = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    device: Device = None,
    threads: Threads = None,
    auth: Auth = None,
) -> None:
    """Serve predictions; every other setting is a PETERREC_* variable (docs/settings.md)."""
    from peterrec.service.processes.supervisor import run_server
    from peterrec.service.settings import read_settings

    settings = read_settings(
        backbone_dir=backbone,
        host=host,
        port=port,
        workers=workers,
        metrics_port=metrics_port,
        data_dir=data_dir,
        redis_url=redis_url,
        device=device,
        threads=threads,
        auth=auth,
    )
    _configure(settings, "supervisor")
    run_server(settings)


def run_device() -> None:
    """The device process; started by `serve`."""
    from peterrec.service.processes.device_process import run_device as run
    from peterrec.service.settings import read_settings

    settings = read_settings()
    _become_child(settings, "device")
    _or_refuse(lambda: run(settings))


def run_worker(fd: Annotated[int, typer.Option(help="The listening socket.")]) -> None:
    """An HTTP worker; started by `serve`."""
    from peterrec.service.processes.http_worker import run_worker as run
    from peterrec.service.settings import read_settings

    settings = read_settings()
    _become_child(settings, f"worker-{os.getpid()}")
    _or_refuse(lambda: run(settings, socket.socket(fileno=fd)))


def push(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .bundle file.")],
    task: Annotated[str, typer.Option(help="Task to register it for.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    alias: Annotated[str, typer.Option(help="Alias to point at it; empty for none.")] = "prod",
    validate_only: Annotated[bool, typer.Option(help="Change nothing.")] = False,
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Register a bundle on a running server, and let it serve."""
    from peterrec.service.cli.api_client import ApiClient

    with ApiClient(url, api_key) as client:
        pushed = client.push(
            file, task, alias=alias, validate_only=validate_only, if_match=if_match
        )
    if as_json:
        print_json(pushed)
        return
    kind, size = pushed["summary"]["kind"], pushed["summary"]["size_bytes"]
    if validate_only:
        print(f"{pushed['digest']} is valid: {kind}, {size} bytes. Nothing was changed.")
        return
    served = f", served as {pushed['alias']}" if pushed["alias"] else ""
    print(f"{task} version {pushed['version']}: {kind}, {size} bytes{served}.")
    print(f"  {pushed['digest']} at registry revision {pushed['registry_revision']}")


def create_key(
    scope: Annotated[
        list[str], typer.Option(help="predict, admin, or either with a task glob; repeatable.")
    ],
    name: Annotated[str, typer.Option(help="Who holds it.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    redis_url: Annotated[
        str | None, typer.Option(help="Write to this registry directly: for the very first key.")
    ] = None,
) -> None:
    """Create an API key and print it once."""
    from peterrec.service.cli.api_client import ApiClient

    if redis_url is not None:
        print(_create_in_registry(redis_url, scope, name))
        return
    with ApiClient(url, api_key) as client:
        print(client.post("/keys", {"name": name, "scopes": scope})["api_key"])


def list_keys(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the API keys, without their secrets."""
    from peterrec.service.cli.api_client import ApiClient

    with ApiClient(url, api_key) as client:
        listed = client.get("/keys")
    if as_json:
        print_json(listed)
        return
    rows = [
        (key["key_id"], key["name"], " ".join(key["scopes"]), key["created_at"]) for key in listed
    ]
    print_table(("id", "name", "scopes", "created"), rows)


def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="From `peterrec keys list`.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Refuse an API key from now on."""
    from peterrec.service.cli.api_client import ApiClient

    with ApiClient(url, api_key) as client:
        client.delete(f"/keys/{key_id}")
    print(f"Key {key_id} is revoked.")


def _create_in_registry(redis_url: str, scopes: list[str], name: str) -> str:
    import asyncio

    from peterrec.patches.identity import DEFAULT_TENANT
    from peterrec.patches.redis.client import open_redis
    from peterrec.patches.registry.api_keys import parse_scope
    from peterrec.patches.registry.registry import Registry

    async def create() -> str:
        redis = open_redis(redis_url)
        try:
            parsed = [parse_scope(scope) for scope in scopes]
            text, _ = await Registry(redis).keys.create(DEFAULT_TENANT, parsed, name)
        finally:
            await redis.aclose()
        return text

    return asyncio.run(create())


def _or_refuse(run: Callable[[], None]) -> None:
    """Run a child; tell the supervisor if starting it again would not help."""
    import structlog

    from peterrec.service.processes.children import EXIT_REFUSED

    try:
        run()
    except PeterRecError as error:
        structlog.get_logger().error(
            "start_refused", code=error.code, reason=error.message, hint=error.hint
        )
        raise typer.Exit(EXIT_REFUSED) from error


def _become_child(settings: "Settings", process: str) -> None:
    from peterrec.service.system.parent_watch import end_with_parent

    end_with_parent()
    _configure(settings, process)


def _configure(settings: "Settings", process: str) -> None:
    from setproctitle import setproctitle

    from peterrec.service.system.logs import configure_logs

    configure_logs(settings.log_level, process)
    setproctitle(f"peterrec: {process}")
