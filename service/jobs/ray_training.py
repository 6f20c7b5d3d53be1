"""Pretrain on a Ray cluster: Ray Train starts the processes, and starts them again when one dies.

Every process makes the same call as without Ray, and computes its share of every batch. A process
or a machine that is lost ends all of them; then as many as the cluster has room for go on from the
last checkpoint. The losses don't depend on how many there are.
"""
# pyright: reportMissingImports=false

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device
from torch import distributed as dist

from peterrec.model.data.interactions import InteractionSource
from peterrec.model.documents import Document
from peterrec.model.errors import PeterRecError
from peterrec.model.training.data_parallel import Workers
from peterrec.model.training.pretrain.settings import PretrainSettings
from peterrec.service.errors import ProcessLost
from peterrec.service.jobs.ray_cluster import connected
from peterrec.service.jobs.reading import observing
from peterrec.service.jobs.recording import Recording
from peterrec.service.jobs.torchrun import Place
from peterrec.service.jobs.tracking.options import TrackOptions
from peterrec.service.jobs.train import OnExisting, prepare_folder, run_pretrain

MAX_LOSSES = 8
"""How often processes may be lost in one training before it fails."""

RESIZE_INTERVAL_S = 300.0
"""Seconds between two looks whether the cluster has room for more processes. Each change goes back
to the last checkpoint, so an epoch at most is computed again."""


@dataclass(frozen=True, slots=True)
class RayPretraining:
    """What to pretrain, and where. ``address`` is the cluster's; ``local`` starts one here.

    At most ``processes`` train together, and at least one. ``out`` and the interactions must have
    the same path on every machine of the cluster.
    """

    address: str
    processes: int
    uses_gpu: bool
    interactions: InteractionSource
    settings: PretrainSettings
    out: Path
    on_existing: OnExisting
    tracking: TrackOptions
    is_quiet: bool = False


def pretrain_on_ray(job: RayPretraining) -> tuple[Document, str]:
    """Pretrain into a folder; return the training's record and the backbone's fingerprint.

    ProcessLost if too many processes were lost.
    """
    prepare_folder(job.out, job.on_existing)
    interactions = job.interactions.absolute()
    job = replace(job, interactions=interactions, out=job.out.absolute(), on_existing="continue")
    with connected(job.address, shows_logs=not job.is_quiet), TemporaryDirectory() as notes:
        trainer = TorchTrainer(
            _train,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=(1, job.processes),
                use_gpu=job.uses_gpu,
                elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
            ),
            run_config=RunConfig(
                storage_path=notes, failure_config=FailureConfig(max_failures=MAX_LOSSES)
            ),
        )
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise _refusal_in(error) from error
    record, fingerprint = result.return_value
    return record, fingerprint


def _train(config: dict[str, RayPretraining]) -> tuple[Document, str]:
    """Train in one of the processes, of which the first one writes."""
    job = config["job"]
    workers = Workers(dist.get_rank(), dist.get_world_size())
    with observing(job.is_quiet or not workers.writes) as observer:
        trained, fingerprint = run_pretrain(
            job.interactions,
            job.settings,
            job.out,
            job.on_existing,
            observer,
            Place(workers, get_device()),
            Recording(job.tracking, observer.line, observer.notices),
        )
    return trained.record, fingerprint


def _refusal_in(error: TrainingFailedError) -> PeterRecError:
    """The refusal that ended the processes, or else that they were lost."""
    for failure in getattr(error, "worker_failures", {}).values():
        refusal = getattr(failure, "_base_exc", failure)
        if isinstance(refusal, PeterRecError):
            return refusal
    return ProcessLost(
        f"the processes of this training were lost too often: {error}",
        hint="Repeat the command with `resume`.",
    )
