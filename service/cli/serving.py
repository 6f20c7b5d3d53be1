"""Commands that run a server and talk to a running one."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import quote

import typer

from peterrec.model.errors import PeterRecError
from peterrec.service.cli.failures import failure_of
from peterrec.service.cli.server_options import (
    AllowNewOutputs,
    ApiKey,
    IfMatch,
    Url,
    print_json,
    print_table,
)
from peterrec.service.cli.shared_options import AsJson, Quiet
from peterrec.service.jobs.progress_bar import ProgressBars
from peterrec.service.jobs.server_calls import DEFAULT_URL, outputs_parameter, server
from peterrec.service.jobs.server_calls import push as push_bundle

if TYPE_CHECKING:
    from peterrec.service.settings import Settings

Backbone = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Backbone folder, written by `peterrec pretrain`."),
]
Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="Port of the API.", show_default="8000")]
Workers = Annotated[
    int | None,
    typer.Option(help="Number of HTTP worker processes.", show_default="by the number of cores"),
]
MetricsPort = Annotated[int | None, typer.Option(help="Port of /metrics.", show_default="9100")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder of the embedded Redis and of caches.", show_default="data"
    ),
]
RedisUrl = Annotated[
    str | None, typer.Option(help="URL of the registry's Redis.", show_default="an embedded one")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None,
    typer.Option(help="Device to compute on.", show_default="auto"),
]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads that compute one batch.", show_default="all cores")
]
Auth = Annotated[
    Literal["on", "off"] | None,
    typer.Option(
        help="Require API keys; off is allowed on loopback addresses only.", show_default="on"
    ),
]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("serve")(serve)
    app.command("push")(push)
    keys = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)
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
    """Serve predictions; other settings are PETERREC_* variables, see docs/settings.md."""
    from peterrec.service.processes.supervisor import run_server
    from peterrec.service.settings import read_settings, unknown_settings

    for sentence in unknown_settings():
        typer.echo(f"note: {sentence}", err=True)
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
    """Run the device process; `serve` starts it."""
    from peterrec.service.settings import read_settings

    settings = read_settings()
    _become_child(settings, "device")

    def run() -> None:
        from peterrec.service.system.kernel_cache import choose_kernel_cache

        choose_kernel_cache(settings.kernel_cache_dir, settings.data_dir)
        from peterrec.service.processes.device_process import run_device

        run_device(settings)

    _run_child(run)


def run_worker(
    fd: Annotated[int, typer.Option(help="File descriptor of the listening socket.")],
) -> None:
    """Run an HTTP worker; `serve` starts it."""
    from peterrec.service.processes.http_worker import run_worker as run
    from peterrec.service.settings import read_settings

    settings = read_settings()
    _become_child(settings, f"worker-{os.getpid()}")
    _run_child(lambda: run(settings, socket.socket(fileno=fd)))


def push(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Bundle file to register.")],
    task: Annotated[str, typer.Option(help="Task to register the bundle for.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    alias: Annotated[
        str, typer.Option(help="Alias to point at the new version; empty for none.")
    ] = "prod",
    validate_only: Annotated[
        bool, typer.Option(help="Only validate the bundle; change nothing.")
    ] = False,
    allow_new_outputs: AllowNewOutputs = False,
    if_match: IfMatch = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Register a bundle on a running server and, through its alias, let it answer."""
    parameters = {"alias": alias, "validate_only": str(validate_only).lower()}
    parameters |= outputs_parameter(allow_new_outputs=allow_new_outputs)
    with server(url, api_key) as to, ProgressBars(quiet) as bars:
        pushed = push_bundle(to, file, task, parameters, if_match, bars)
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
        list[str],
        typer.Option(
            help="What the key may do: predict or admin, for some tasks only predict:GLOB or "
            "admin:GLOB; repeatable."
        ),
    ],
    name: Annotated[str, typer.Option(help="Holder of the key.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    redis_url: Annotated[
        str | None,
        typer.Option(help="Write to the registry at this URL directly: for the first key."),
    ] = None,
) -> None:
    """Create an API key and print it once."""
    if redis_url is not None:
        print(_create_in_registry(redis_url, scope, name))
        return
    with server(url, api_key) as to:
        print(to.change("POST", "/keys", {"name": name, "scopes": scope})["api_key"])


def list_keys(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the API keys, without their secrets."""
    with server(url, api_key) as to:
        listed = to.get("/keys")
    if as_json:
        print_json(listed)
        return
    rows = [
        (key["key_id"], key["name"], " ".join(key["scopes"]), key["created_at"]) for key in listed
    ]
    print_table(("id", "name", "scopes", "created"), rows)


def revoke_key(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the key, from `peterrec keys list`.")
    ],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Revoke an API key, from now on."""
    with server(url, api_key) as to:
        to.change("DELETE", f"/keys/{quote(key_id, safe='')}")
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


def _run_child(run: Callable[[], None]) -> None:
    """Run a child process; its exit status says whether starting it again could help.

    The reason of a failure is one line of the log.
    """
    import structlog

    from peterrec.service.processes.children import EXIT_REFUSED

    log = structlog.get_logger()
    try:
        run()
    except PeterRecError as error:
        log.error("start_refused", code=error.code, reason=error.message, hint=error.hint)
        raise typer.Exit(EXIT_REFUSED) from error
    except Exception as error:
        failure = failure_of(error)
        log.exception("child_failed", code=failure.code, reason=failure.message, hint=failure.hint)
        raise typer.Exit(1) from error


def _become_child(settings: "Settings", process: str) -> None:
    from peterrec.service.system.parent_watch import end_with_parent

    end_with_parent()
    _configure(settings, process)


def _configure(settings: "Settings", process: str) -> None:
    from setproctitle import setproctitle

    from peterrec.service.system.logs import configure_logs

    configure_logs(settings.log_level, process)
    setproctitle(f"peterrec: {process}")
