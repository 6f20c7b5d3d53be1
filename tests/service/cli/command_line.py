"""Commands run in the test's own process."""

from pathlib import Path

from typer.testing import CliRunner

from peterrec.service.cli.main import build_app


def run(*arguments: str | Path) -> str:
    """The command's output; its error, if it fails."""
    result = CliRunner().invoke(build_app(), [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout
