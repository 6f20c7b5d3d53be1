"""The options of commands that train: which tracker follows, and where it keeps the run."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

TrackerName = Literal["tensorboard", "mlflow"]

TRACKING = "Tracking"
"""Title of the options about trackers in ``--help``."""


@dataclass(frozen=True, slots=True)
class TrackOptions:
    """The tracker that follows a training, and where it keeps the run."""

    track: Annotated[
        TrackerName | None,
        typer.Option(help="Follow the training with this tracker too.", rich_help_panel=TRACKING),
    ] = None
    track_to: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URI",
            help="TensorBoard: a folder, default runs. MLflow: http://HOST:PORT or "
            "sqlite:///FILE.db, default MLFLOW_TRACKING_URI.",
            rich_help_panel=TRACKING,
        ),
    ] = None
