"""The demo command."""

from pathlib import Path
from typing import Annotated

import typer

from peterrec.model.disk import require_writable_folder
from peterrec.service.jobs.server_calls import DEFAULT_URL

DEMO_BYTES = 64 << 20
"""Room that the demo needs: data, backbone, bundles, and the server's copies of the bundles."""


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("demo")(demo)


def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of MovieLens, unpacked.", show_default="a generated shop"
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder to write; an earlier demo in it is replaced."),
    ] = Path("demo-data"),
    port: Annotated[int, typer.Option(help="Port of the API.")] = 8000,
    once: Annotated[
        bool, typer.Option("--once", help="Exit after the prediction instead of serving.")
    ] = False,
    backbone_only: Annotated[
        bool,
        typer.Option(
            "--backbone-only", help="Make the shop and its backbone, unless they are there."
        ),
    ] = False,
    backbone: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --backbone-only or --redis-url: folder of the backbone.",
            show_default="backbone in --out",
        ),
    ] = None,
    url: Annotated[
        str,
        typer.Option(help="With --redis-url: the server that gets the shop's tasks and is asked."),
    ] = DEFAULT_URL,
    redis_url: Annotated[
        str | None,
        typer.Option(
            help="Start no server, but fill one that runs and whose registry is here, and go on "
            "asking it. What is there already is not made again.",
        ),
    ] = None,
    requests_per_s: Annotated[
        float, typer.Option(min=0.01, help="With --redis-url: how often to ask.")
    ] = 5.0,
) -> None:
    """Make data, pretrain, fine-tune some tasks, serve them, and predict them for one user."""
    require_writable_folder(out, DEMO_BYTES)
    if backbone_only or redis_url is not None:
        from peterrec.service.jobs.demo_server import Neighbour, fill_server, make_backbone

        backbone = backbone or out / "backbone"
        if redis_url is None:
            make_backbone(out, backbone)
        else:
            fill_server(out, backbone, Neighbour(url, redis_url, requests_per_s))
        return
    from peterrec.service.jobs.demo import DemoOptions, run_demo

    run_demo(DemoOptions(data, out, port, once))
