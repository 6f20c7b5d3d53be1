"""The command that adds titles and attributes to a bundle without training it again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from peterrec.model.disk import read_bytes, require_writable_file, write_bytes
from peterrec.patches.identity import digest_of, format_digest
from peterrec.service.cli.settings_options import takes_settings
from peterrec.service.cli.shared_options import Overwrite, Quiet
from peterrec.service.errors import DescriptionMissing, OutputExists
from peterrec.service.jobs.describing import DescribeOptions, described
from peterrec.service.jobs.options import Delimiter, Missing


@dataclass(frozen=True, slots=True)
class _Form:
    """How the tables are written."""

    delimiter: str | None
    missing: list[str] | None


def register(app: typer.Typer) -> None:
    """Add this group's command."""
    app.command()(takes_settings(describe))


def describe(
    file: Annotated[Path, typer.Argument(help="Bundle file to read.")],
    out: Annotated[Path, typer.Option(help="Bundle file to write, FILE.bundle.")],
    descriptions: DescribeOptions,
    delimiter: Delimiter = None,
    missing: Missing = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Give a bundle titles and attributes, such as today's prices, without training it again.

    They replace those that it has. The new file is another version, without signatures.
    """
    from peterrec.service.jobs.reading import observing

    if not descriptions.are_given:
        raise DescriptionMissing
    require_writable_file(out)
    if out.exists() and not overwrite:
        raise OutputExists(f"{out} exists.", hint="Give another `out`, or `overwrite`.")
    with observing(quiet) as observer:
        data = described(read_bytes(file), descriptions, _Form(delimiter, missing), observer)
    write_bytes(out, data)
    print(f"{out}: {len(data)} bytes, {format_digest(digest_of(data))}")
