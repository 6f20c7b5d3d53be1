"""``peterrec top``: a live view of a running server in the terminal."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from math import isnan
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from peterrec.service.cli.server_options import Url
from peterrec.service.jobs.server_calls import DEFAULT_URL
from peterrec.service.system.texts import printable

if TYPE_CHECKING:
    import httpx

    from peterrec.service.jobs.watching import Load, Reading, View

DEFAULT_METRICS_URL = "http://127.0.0.1:9100/metrics"

STALE_S = 10.0
"""Seconds since the registry was read from which on its age is shown in red."""

MOST_TENANTS = 5

MetricsUrl = Annotated[
    str, typer.Option(envvar="PETERREC_METRICS_URL", help="URL of the server's metrics.")
]
MetricsToken = Annotated[
    str | None,
    typer.Option(envvar="PETERREC_METRICS_TOKEN", help="Token of the metrics, if they need one."),
]
Interval = Annotated[
    float, typer.Option(min=0.2, max=3600, help="Seconds between two looks at the server.")
]
Rows = Annotated[int, typer.Option(min=1, max=1000, help="Number of tasks that are listed.")]
Once = Annotated[
    bool, typer.Option("--once", help="Print one view, of one interval, and end: for scripts.")
]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(top)


def top(
    url: Url = DEFAULT_URL,
    metrics_url: MetricsUrl = DEFAULT_METRICS_URL,
    metrics_token: MetricsToken = None,
    interval: Interval = 2.0,
    rows: Rows = 15,
    once: Once = False,
) -> None:
    """Watch a running server: its load, its device and its busiest tasks. Ctrl-C ends it."""
    from peterrec.service.jobs.watching import read_metrics

    console = Console()
    metrics = partial(read_metrics, url=metrics_url, token=metrics_token)
    views = _views(url, metrics, interval, rows)
    if once:
        console.print(next(views))
        return
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        live.update(Text("Looking at the server …"), refresh=True)
        for view in views:
            live.update(view, refresh=True)


def _views(
    url: str, metrics: "Callable[[httpx.Client], Reading]", interval: float, rows: int
) -> Iterator[RenderableType]:
    import httpx

    from peterrec.service.errors import ServerUnreachable
    from peterrec.service.jobs.watching import compare, read_readiness

    with httpx.Client(trust_env=False) as client:
        before = metrics(client)  # a wrong address ends the command
        while True:
            time.sleep(interval)
            state = read_readiness(client, url)
            try:
                after = metrics(client)
            except ServerUnreachable as error:
                yield Text(f"{error.message} Waiting for it.", style="red")
                continue
            yield draw(compare(before, after), state, url, rows)
            before = after


def draw(view: "View", state: str, url: str, rows: int) -> RenderableType:
    """Draw a view. ``state`` says whether the server is ready."""
    parts: list[RenderableType] = [_head(view, state, url), _figures(view), _tasks(view, rows)]
    if len(view.tenants) > 1:
        parts.append(_tenants(view))
    return Group(*parts)


def _head(view: "View", state: str, url: str) -> Text:
    is_stale = not view.is_registry_up or view.stale_s > STALE_S
    registry = "registry unreachable" if not view.is_registry_up else "registry"
    return Text.assemble(
        (f"PeterRec {view.version}", "bold"),
        f"  {printable(url)}  ",
        (state, "green" if state == "ready" else "bold red"),
        f"  up {_duration(view.up_s)}  ",
        (
            f"{registry}: revision {view.revision}, read {_number(view.stale_s)} s ago",
            "red" if is_stale else "",
        ),
    )


def _figures(view: "View") -> Table:
    table = Table.grid(padding=(0, 3))
    for _ in range(4):
        table.add_column()
    load, size = view.all_tasks, view.bytes_of
    restarts = Text(f"restarts {view.restarts:.0f}", style="red" if view.restarts else "")
    table.add_row(
        f"requests {_number(load.per_s)}/s",
        _share("failed", load.failed, is_bad=load.failed > 0),
        f"p50 {_ms(load.p50_s)}",
        f"p99 {_ms(load.p99_s)}",
    )
    table.add_row(
        f"batches {_number(view.batches_per_s)}/s",
        _share("device busy", view.busy, is_bad=view.busy > 0.9),
        f"rows {_number(view.rows_per_batch)} of {_number(view.tasks_per_batch)} tasks a batch",
        f"rows refused {_number(view.rejected_per_s)}/s",
    )
    table.add_row(
        f"queue {view.queued_rows:.0f} rows",
        f"wait p99 {_ms(view.wait_p99_s)}",
        f"tasks {view.registered:.0f}, bundles {view.bundles:.0f}",
        restarts,
    )
    table.add_row(*(f"{name} {_bytes(size[name])}" for name in ("backbone", "patch", "head")), "")
    return table


def _tasks(view: "View", rows: int) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left")
    table.add_column("task", overflow="ellipsis", no_wrap=True, max_width=50)
    for name in ("requests/s", "failed", "p50", "p99"):
        table.add_column(name, justify="right")
    busiest = sorted(view.tasks.items(), key=lambda each: -each[1].per_s)
    for name, load in busiest[:rows]:
        table.add_row(printable(name), *_cells(load))
    if len(busiest) > rows:
        table.add_row(f"… {len(busiest) - rows} more with requests")
    if not busiest:
        table.add_row("no requests in this interval")
    return table


def _cells(load: "Load") -> tuple[str | Text, ...]:
    failed = Text(f"{load.failed:.1%}", style="red" if load.failed else "")
    return _number(load.per_s), failed, _ms(load.p50_s), _ms(load.p99_s)


def _tenants(view: "View") -> Text:
    total = sum(view.tenants.values())
    busiest = sorted(view.tenants.items(), key=lambda each: -each[1])[:MOST_TENANTS]
    shares = ", ".join(f"{printable(name)} {work / total:.0%}" for name, work in busiest)
    return Text(f"device by tenant: {shares}")


def _share(name: str, share: float, *, is_bad: bool) -> Text:
    shown = "–" if isnan(share) else f"{share:.1%}"
    return Text(f"{name} {shown}", style="red" if is_bad else "")


def _number(value: float) -> str:
    return "–" if isnan(value) else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _ms(seconds: float) -> str:
    return "–" if isnan(seconds) else f"{1000 * seconds:.1f} ms"


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _duration(seconds: float) -> str:
    minutes, hours = divmod(int(seconds), 60)[0], int(seconds) // 3600
    if hours >= 48:
        return f"{hours // 24} d"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {int(seconds) % 60} s"
