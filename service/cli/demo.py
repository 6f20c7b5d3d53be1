"""The demo command."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("demo")(demo)


def demo(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A MovieLens folder.", show_default="a shop")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Overwritten.")] = Path("demo-data"),
    port: Annotated[int, typer.Option(help="Port of the API.")] = 8000,
    once: Annotated[bool, typer.Option("--once", help="Exit after the prediction.")] = False,
) -> None:
    """Make data, pretrain, fine-tune five tasks, serve them, and show one user's card."""
    from peterrec.service.jobs.demo import DemoOptions, run_demo

    run_demo(DemoOptions(data, out, port, once))
