"""What better pretraining does to the tasks above it: next-item quality against task quality.

Backbones of one data set are pretrained by several recipes, from none at all to the best that is
known. Each predicts its users' held-out newest items (leave-one-out, all items ranked), and the
tasks of the data set are fine-tuned on it. Films have profile tasks, shops cold-start rankings.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from bench.backbone_plots import Result, draw, points_of
from bench.report import Report
from peterrec.model.data.histories import Histories
from peterrec.model.data.interactions import InteractionSource
from peterrec.model.data.tables import TableSource
from peterrec.model.files.backbone_folder import load_backbone
from peterrec.model.progress import no_progress
from peterrec.model.study.corpus import PreparedCorpus, read_corpora, write_corpora
from peterrec.model.study.sources import Cut, domain_corpora, movielens_corpora
from peterrec.model.training.finetune.finetune import FinetuneSettings, finetune
from peterrec.model.training.intervals import estimates
from peterrec.model.training.next_items import (
    HeldOutPart,
    Ranking,
    by_backbone,
    gains_of,
    hold_out,
    rank_all,
)
from peterrec.model.training.pretrain.pretrain import PretrainedBackbone, PretrainSettings, pretrain
from peterrec.service.jobs.train import write_backbone

RESULTS = "results.jsonl"

FILMS = PretrainSettings(
    dilations=(1, 4, 16, 32), max_len=200, leave_out_last=1, validation_share=0
)
"""Of films, histories are long. The newest item is the test's, the one before it validation's."""

SHOPS = PretrainSettings(dilations=(1, 4, 1, 4), max_len=30, leave_out_last=1, validation_share=0)

LONG = {
    "epochs": 40,
    "patience": 40,
    "batch_size": 128,
    "item_dropout": 0.1,
    "contrast_weight": 0.0,
}

RECIPES: Mapping[str, Mapping[str, object]] = {
    "untrained": {"epochs": 1, "learning_rate": 0.0, "start": "random"},
    "spectral": {"epochs": 1, "learning_rate": 0.0},
    "1 epoch": {"epochs": 1},
    "default": {},
    "20 epochs": {"epochs": 20},
    "long": {**LONG, "dropout": 0.1},
    "long, contrast": {**LONG, "dropout": 0.1, "contrast_weight": 0.5},
    "wide": {**LONG, "channels": 128, "dropout": 0.3, "learning_rate": 2e-3},
    "wider": {**LONG, "channels": 256, "dropout": 0.4, "learning_rate": 2e-3},
}
"""What each recipe changes of the data set's settings. The first two train nothing."""

TASK_FORMS = {
    "head": {"queries": 0, "blocks": ()},
    "reader": {"queries": 8, "blocks": ()},
    "patch": {"queries": 0},
    "default": {},
}
"""What is trained above a backbone: a head alone, or a reader, a patch or both below it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement: a backbone by itself if ``task`` is empty, else a task above it."""

    options: argparse.Namespace
    corpus: str
    recipe: str
    task: str = ""
    form: str = ""
    seed: int = 0

    @property
    def out(self) -> Path:
        """The folder of all results."""
        out: Path = self.options.out
        return out

    @property
    def folder(self) -> Path:
        """The backbone's folder."""
        return self.out / "backbones" / f"{self.corpus} {self.recipe}"

    @property
    def key(self) -> list[str | int]:
        """What identifies the measurement among the results."""
        return [self.corpus, self.recipe, self.task, self.form, self.seed]


def main(arguments: list[str]) -> None:
    """``python -m bench backbones``."""
    parser = argparse.ArgumentParser(prog="python -m bench backbones", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder; finished parts are kept")
    parser.add_argument("--movielens", type=Path, help="folder of MovieLens 1M")
    parser.add_argument("--shops", type=Path, help="events of two domains, food and kitchen")
    parser.add_argument("--recipes", default=",".join(RECIPES).replace(", ", "+"))
    parser.add_argument("--tasks", default="gender,age,first-items")
    parser.add_argument("--forms", default="head,default")
    parser.add_argument("--seeds", type=int, default=2, help="splits and starts of each task")
    parser.add_argument("--device", default="cpu", help="where backbones are pretrained")
    parser.add_argument("--precision", default="float32", help="of pretraining")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure what has no result yet, then make the table and the picture of all results."""
    corpora = {corpus.name: corpus for corpus in _prepared(options)}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        _measure(pool, corpora, options)
    found = read_results(options.out)
    draw(found, options.out)
    return _report(found, options)


def _prepared(options: argparse.Namespace) -> list[PreparedCorpus]:
    folder = options.out / "prepared"
    if not folder.exists():
        cut, corpora = Cut(min_history=5), list[PreparedCorpus]()
        if options.movielens:
            corpora += movielens_corpora(options.movielens, "genre:Comedy", cut)[:1]
        if options.shops:
            source = InteractionSource(TableSource(options.shops), order_column="timestamp")
            corpora += domain_corpora(source, "domain", ("food", "kitchen"), cut)
        write_corpora(folder, corpora)
    return read_corpora(folder)


def _measure(
    pool: ProcessPoolExecutor, corpora: Mapping[str, PreparedCorpus], options: argparse.Namespace
) -> None:
    """Write down every measurement when it ends; a backbone's tasks start when it is there."""
    done = [result["job"] for result in read_results(options.out)]
    recipes = [name.replace("+", ", ") for name in options.recipes.split(",")]
    running = {
        pool.submit(_measured, job, job.key in done): job
        for corpus in corpora
        for job in (Job(options, corpus, recipe) for recipe in recipes)
    }
    while running:
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            job = running.pop(future)
            if job.key not in done:
                _write(job, future.result())
            if not job.task:
                above = _tasks_above(job, corpora[job.corpus])
                running |= {
                    pool.submit(_measured, own): own for own in above if own.key not in done
                }


def _tasks_above(job: Job, corpus: PreparedCorpus) -> Iterator[Job]:
    options = job.options
    for task in corpus.tasks:
        if task.name in options.tasks.split(","):
            for form in options.forms.split(","):
                for seed in range(options.seeds):
                    yield replace(job, task=task.name, form=form, seed=seed)


def _measured(job: Job, is_done: bool = False) -> dict[str, float]:
    """One measurement, in a process of its own."""
    torch.set_num_threads(1)
    if is_done:
        return {}
    (corpus,) = (each for each in read_corpora(job.out / "prepared") if each.name == job.corpus)
    return _task_quality(job, corpus) if job.task else _next_item_quality(job, corpus)


def _next_item_quality(job: Job, corpus: PreparedCorpus) -> dict[str, float]:
    settings = settings_of(job)
    started = time.perf_counter()
    trained = pretrain(_sequences(corpus), settings, device=torch.device(job.options.device))
    seconds = time.perf_counter() - started
    job.folder.mkdir(parents=True, exist_ok=True)
    write_backbone(job.folder, trained)
    parts: tuple[HeldOutPart, ...] = ("validation", "test")
    found = {
        f"{part} {name}": value
        for part in parts
        for name, value in _gains(trained, corpus, part, job.options.device).items()
    }
    return {"seconds": seconds, "epochs": len(trained.record["epochs"]), **found}


def _sequences(corpus: PreparedCorpus) -> Histories:
    """What pretraining reads: of shops all events of the source domain, also later than inputs."""
    return corpus.histories if corpus.pretraining is None else corpus.pretraining


def settings_of(job: Job) -> PretrainSettings:
    """The pretraining of a job's recipe on the job's data."""
    base = FILMS if job.corpus.startswith("movielens") else SHOPS
    chosen = {**RECIPES[job.recipe], "precision": job.options.precision}
    return replace(base, **chosen)


def _gains(
    trained: PretrainedBackbone, corpus: PreparedCorpus, part: HeldOutPart, device: str
) -> dict[str, float]:
    """Hit rate and NDCG at 10 of the held-out items; films that were rated are left out."""
    asked = hold_out(_sequences(corpus), trained.vocabulary, part)
    backbone = trained.backbone.to(device)
    output = (trained.output.weight.detach().to(device), trained.output.bias.detach().to(device))
    ranking = Ranking(len(trained.vocabulary), without_seen=corpus.name.startswith("movielens"))
    ranks = rank_all(asked, by_backbone(backbone, *output), ranking, no_progress, "ranking")
    found = estimates(gains_of(ranks, [10]), len(ranks))
    return {name: each.value for name, each in found.items()}


def _task_quality(job: Job, corpus: PreparedCorpus) -> dict[str, float]:
    task = corpus.task(job.task)
    settings = FinetuneSettings(
        kind=task.kind,
        test_share=0.2,
        max_unknown_share=1.0,  # pretraining leaves out the newest items
        item_dropout=0.5 if task.kind == "classification" else 0.2,
        seed=job.seed,
        **TASK_FORMS[job.form],  # type: ignore[arg-type]  # TASK_FORMS names fields of the settings
    )
    return finetune(load_backbone(job.folder), corpus.histories, task.labels, settings).metrics


def _write(job: Job, figures: Mapping[str, float]) -> None:
    with (job.out / RESULTS).open("a") as file:
        file.write(json.dumps({"job": job.key, "figures": figures}) + "\n")
    print(job.key, {name: round(value, 4) for name, value in figures.items()}, flush=True)


def read_results(out: Path) -> list[Result]:
    """All measurements so far."""
    path = out / RESULTS
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def _report(results: Sequence[Result], options: argparse.Namespace) -> Report:
    rows = list(points_of(results))
    return Report(
        name="backbones",
        figures={f"{point.corpus} {point.recipe} {point.what}": point.value for point in rows},
        settings={"seeds": options.seeds, "device": options.device},
        columns=("data", "recipe", "task", "ndcg@10", "hr@10", "value", "± of seeds"),
        rows=[
            [
                p.corpus,
                p.recipe,
                p.what,
                *(f"{n:.4f}" for n in (p.ndcg, p.hit_rate, p.value, p.spread)),
            ]
            for p in rows
        ],
    )
