"""Options that commands of several groups take: each is written once."""

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

AsJsonLines = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per line, for archiving.")
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
