"""Options that commands of several groups take: each is written once."""

from pathlib import Path
from typing import Annotated

import typer

from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.service.cli.settings_options import field_option

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

AsJsonLines = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per line, for archiving.")
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]

BackboneFolder = Annotated[
    Path, typer.Option(help="Backbone folder, written by `peterrec pretrain`.")
]

Blocks = Annotated[str, field_option(FinetuneSettings, "blocks")]
"""The blocks to patch, as text: it is read when the backbone's number of blocks is known."""

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print neither progress nor notices on stderr.")
]

Out = Annotated[Path, typer.Option(help="Folder to write.")]


def task_names(tasks: str | None) -> tuple[str, ...]:
    """The names of a list with commas; blanks around them and empty ones are left out."""
    return tuple(name.strip() for name in (tasks or "").split(",") if name.strip())
