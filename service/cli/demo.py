"""The demo command."""

from pathlib import Path
from typing import Annotated

import typer

from peterrec.model.disk import require_writable_folder

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
) -> None:
    """Make data, pretrain, fine-tune some tasks, serve them, and predict them for one user."""
    require_writable_folder(out, DEMO_BYTES)
    from peterrec.service.jobs.demo import DemoOptions, run_demo

    run_demo(DemoOptions(data, out, port, once))
