"""Commands of the serving group."""

import typer


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
