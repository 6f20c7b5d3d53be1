"""Commands that run a server and talk to a running one."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from peterrec.model.errors import PeterRecError
from peterrec.service.cli.failures import failure_of
from peterrec.service.cli.server_options import (
    AllowNewOutputs,
    ApiKey,
    IfMatch,
    Url,
    print_json,
)
from peterrec.service.cli.shared_options import AsJson, Quiet
from peterrec.service.jobs.bundle_file import bundle_file
from peterrec.service.jobs.progress_bar import ProgressBars
from peterrec.service.jobs.server_calls import DEFAULT_URL, outputs_parameter, server
from peterrec.service.jobs.server_calls import push as push_bundle

if TYPE_CHECKING:
    from peterrec.service.settings import Settings

Backbone = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DIR",
        help="Backbone folder, written by `peterrec pretrain`; give it again for a further one.",
    ),
]
Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="Port of the API.", show_default="8000")]
Workers = Annotated[
    int | None,
    typer.Option(help="Number of HTTP worker processes.", show_default="by the number of cores"),
]
GrpcPort = Annotated[
    int | None,
    typer.Option(
        help="Port of the Open Inference Protocol over gRPC.", show_default="there is no gRPC"
    ),
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


PulseFile = Annotated[Path | None, typer.Option(help="File in which a process shows its progress.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("serve")(serve)
    app.command("push")(push)
    app.command("run-device", hidden=True)(run_device)
    app.command("run-worker", hidden=True)(run_worker)
    app.command("run-replica", hidden=True)(run_replica)
    app.command("run-fetch", hidden=True)(run_fetch)


def serve(
    backbone: Backbone = None,
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    metrics_port: MetricsPort = None,
    grpc_port: GrpcPort = None,
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
        backbone_dir=tuple(backbone or ()) or None,
        host=host,
        port=port,
        workers=workers,
        metrics_port=metrics_port,
        grpc_port=grpc_port,
        data_dir=data_dir,
        redis_url=redis_url,
        device=device,
        threads=threads,
        auth=auth,
    )
    _configure(settings, "supervisor")
    run_server(settings)


def run_device(pulse: PulseFile = None) -> None:
    """Run the device process; `serve` starts it."""
    from peterrec.service.settings import read_settings
    from peterrec.service.system.pulse import Pulse

    settings = read_settings()
    _become_child(settings, "device")

    def run() -> None:
        from peterrec.service.system.kernel_cache import choose_kernel_cache

        choose_kernel_cache(settings.kernel_cache_dir, settings.data_dir)
        from peterrec.service.processes.device_process import run_device

        run_device(settings, Pulse.at(pulse))

    _run_child(run)


def run_worker(
    fd: Annotated[int, typer.Option(help="File descriptor of the listening socket.")],
    pulse: PulseFile = None,
    device_pulse: PulseFile = None,
) -> None:
    """Run an HTTP worker; `serve` starts it."""
    from peterrec.service.processes.http_worker import Pulses
    from peterrec.service.processes.http_worker import run_worker as run
    from peterrec.service.settings import read_settings
    from peterrec.service.system.pulse import Pulse

    settings = read_settings()
    _become_child(settings, f"worker-{os.getpid()}")
    pulses = Pulses(Pulse.at(pulse), Pulse.at(device_pulse))
    _run_child(lambda: run(settings, socket.socket(fileno=fd), pulses))


def run_replica() -> None:
    """Run a server that ends with its parent; a replica of Ray Serve starts it."""
    from peterrec.service.processes.supervisor import run_server
    from peterrec.service.settings import read_settings

    settings = read_settings()
    _become_child(settings, "supervisor")
    run_server(settings)


def run_fetch() -> None:
    """Fetch a bundle; a worker starts it."""
    from peterrec.service.sources.child import fetch_as_child

    fetch_as_child()


def push(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|ADDRESS",
            help="Bundle to register: a file, or an address that this command can read: "
            "https://…, s3://BUCKET/KEY, oci://HOST/REPOSITORY:TAG or runs:/RUN_ID/PATH.",
        ),
    ],
    task: Annotated[str, typer.Option(help="Task to register the bundle for.")],
    digest: Annotated[
        str | None,
        typer.Option(help="Digest (sha256) that the bundle must have; else nothing is sent."),
    ] = None,
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
    with (
        server(url, api_key) as to,
        ProgressBars(quiet) as bars,
        bundle_file(file, digest, bars) as bundle,
    ):
        parameters |= {"origin": bundle.origin} if bundle.origin else {}
        pushed = push_bundle(to, bundle.path, task, parameters, if_match, bars)
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
    import faulthandler

    from peterrec.service.system.parent_watch import end_with_parent

    faulthandler.enable()  # the supervisor ends a process that hangs so that it tells where
    end_with_parent()
    _configure(settings, process)


def _configure(settings: "Settings", process: str) -> None:
    from setproctitle import setproctitle

    from peterrec.service.system.logs import LogStyle, configure_logs
    from peterrec.service.system.profiles import allow_profiles
    from peterrec.service.telemetry.timeline import ids_of_request

    configure_logs(LogStyle(settings.log_level, settings.log_format), process, ids_of_request)
    if settings.profiling:
        allow_profiles()
    setproctitle(f"peterrec: {process}")
