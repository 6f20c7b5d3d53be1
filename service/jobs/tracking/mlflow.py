"""MLflow: a run with parameters, metrics by epoch, and the training's files as artefacts."""

import logging
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from peterrec.model.training.events import PartMeasured, TrainingEvent, TrainingStarted
from peterrec.service.errors import TrackerUnavailable
from peterrec.service.jobs.tracking.tracker import (
    flat_settings,
    in_short,
    missing,
    place_of,
    scalars_of,
    without_passwords,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "peterrec"
"""Experiment of the runs, unless the variable MLFLOW_EXPERIMENT_NAME names another."""

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's own settings, which it reads from the environment: no reports of use to its makers, and
no waiting of minutes for a server that is away. A variable that is set already stays as it is."""

MOST_PARAMETERS = 100
"""Parameters that one call of MLflow takes."""

SQLITE = "sqlite:///"


def open_tracker(target: str, name: str) -> "MlflowRun":
    """A new run at a tracking URI; without one, where MLFLOW_TRACKING_URI or MLflow says."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)  # MLflow has no other way to set these
    try:
        import mlflow
        from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME
    except ImportError as error:
        raise missing("mlflow", error) from error
    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    uri = target or mlflow.get_tracking_uri()
    named = MLFLOW_EXPERIMENT_NAME.get()  # type: ignore[no-untyped-call]  # MLflow's
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        experiment = _experiment(client, uri, named or EXPERIMENT)
        run = client.create_run(experiment, run_name=name)
    except ModuleNotFoundError as error:
        raise missing("mlflow", error) from error
    except Exception as error:  # of MLflow, its database or its HTTP library: dozens of classes
        raise TrackerUnavailable(
            f"MLflow at {without_passwords(uri)} can't be used: {in_short(error)}.",
            hint="Give `track_to` http://HOST:PORT or sqlite:///FILE.db, or leave `track` out.",
        ) from error
    return MlflowRun(client, str(run.info.run_id))


class MlflowRun:
    """One run of MLflow. Metrics are called ``validation/accuracy``, with ``_at_`` for ``@``."""

    def __init__(self, client: "MlflowClient", run: str) -> None:
        self._client = client
        self._run = run

    def hear(self, event: TrainingEvent) -> None:
        if isinstance(event, TrainingStarted):
            self._log_parameters(event)
        elif isinstance(event, PartMeasured):
            self._log_metrics(event)

    def keep_files(self, files: list[Path]) -> None:
        for file in files:
            self._client.log_artifact(self._run, str(file))

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")

    def _log_parameters(self, event: TrainingStarted) -> None:
        from mlflow.entities import Param

        about = {"training": event.training, "backbone": event.backbone, **event.settings}
        texts = flat_settings({**about, "data": event.data, "machine": event.machine})
        parameters = [Param(name, text) for name, text in texts.items()]
        for start in range(0, len(parameters), MOST_PARAMETERS):
            part = parameters[start : start + MOST_PARAMETERS]
            self._client.log_batch(self._run, params=part, synchronous=True)

    def _log_metrics(self, event: PartMeasured) -> None:
        from mlflow.entities import Metric

        at = datetime.now() if event.time is None else datetime.fromisoformat(event.time)
        moment = int(at.timestamp() * 1000)
        metrics = [
            Metric(f"{place_of(event)}/{name.replace('@', '_at_')}", value, moment, event.epoch)
            for name, value in scalars_of(event).items()
        ]
        self._client.log_batch(self._run, metrics=metrics, synchronous=True)


def _experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """The id of the experiment, which is created if there is none.

    Files of an experiment in a database file are kept beside it, not in the current folder.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    place = None
    if uri.startswith(SQLITE):
        place = (Path(uri.removeprefix(SQLITE)).absolute().parent / "mlartifacts").as_uri()
    return client.create_experiment(name, artifact_location=place)
