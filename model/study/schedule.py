"""The runs of a comparison: which there are, in which order, and on how many processes.

Backbones are pretrained first, if a method needs one. Then, for each variant and task, all learning
rates are tried with the first seed, and the other seeds run with the rates that did best on
validation users. Every finished run is one line of ``runs.jsonl``, so an interrupted comparison
continues where it stopped (decision 0031: why this is not a library).
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from peterrec.model.disk import append_line, make_folder
from peterrec.model.progress import Notice, OnProgress, Progress, no_notice
from peterrec.model.study.backbones import backbone_folder, ensure_backbone
from peterrec.model.study.baselines import BASELINES, POPULAR, Strength, prior_of
from peterrec.model.study.corpus import PreparedCorpus, choose_tasks
from peterrec.model.study.methods import (
    FINETUNED,
    Rates,
    Variant,
    choose_variants,
    fits,
    is_joint,
    is_trained,
    rates_of,
)
from peterrec.model.study.results import RunResult
from peterrec.model.study.run import RunSpec, Workplace, corpora_at, execute, run_key
from peterrec.model.study.settings import DEFAULT_METHODS
from peterrec.model.study.task_data import check_task

JOURNAL = "runs.jsonl"


@dataclass(slots=True)
class Unit:
    """One variant on one task, or on all tasks of a corpus together: its trials and its seeds."""

    corpus: str
    tasks: tuple[str, ...]
    variant: Variant
    rates: tuple[Rates | Strength, ...]
    seeds: tuple[int, ...]
    results: dict[RunSpec, RunResult] = field(default_factory=dict)

    @property
    def trials(self) -> list[RunSpec]:
        """The runs that try every pair of rates with the first seed."""
        return [self._spec(rates, self.seeds[0]) for rates in self.rates]

    @property
    def chosen(self) -> Rates | Strength | None:
        """The rates with the lowest validation loss.

        None until all are tried, and if all diverged.
        """
        if any(spec not in self.results for spec in self.trials):
            return None
        losses = [_validation_loss(self.results[spec]) for spec in self.trials]
        return self.rates[losses.index(min(losses))] if min(losses) < math.inf else None

    @property
    def final(self) -> list[RunSpec]:
        """The runs that enter the report: every seed with the chosen rates."""
        chosen = self.chosen
        return [self._spec(chosen, seed) for seed in self.seeds] if chosen else []

    @property
    def planned(self) -> int:
        """The number of runs, finished or not."""
        return len(self.rates) + len(self.seeds) - 1

    def ready(self) -> list[RunSpec]:
        """The runs that can start now and have no result yet."""
        return [spec for spec in [*self.trials, *self.final] if spec not in self.results]

    def _spec(self, rates: Rates | Strength, seed: int) -> RunSpec:
        return RunSpec(self.corpus, self.tasks, self.variant, seed, rates)


def _validation_loss(result: RunResult) -> float:
    return math.inf if "failed" in result else float(result.get("validation_loss", 0.0))


def plan_units(place: Workplace) -> list[Unit]:
    """All variants on all tasks; the priors come first, then the baselines.

    Neither draws anything at random, so both have one seed.
    """
    settings = place.settings
    pairs = choose_tasks(list(corpora_at(place.prepared).values()), settings.tasks)
    variants = choose_variants(settings.methods, settings.axes, settings.label_shares)
    seeds = tuple(range(settings.first_seed, settings.first_seed + settings.seeds))
    priors = [
        Unit(corpus.name, (task,), Variant(name, label_share=share), (Rates(0, 0),), seeds[:1])
        for corpus, task in pairs
        for name in [prior_of(corpus.task(task).kind)]
        for share in settings.label_shares
    ]
    baselines = [
        Unit(corpus.name, (task,), variant, by_kind[corpus.task(task).kind].strengths, seeds[:1])
        for variant in variants
        for by_kind in [BASELINES.get(variant.method, {})]
        for corpus, task in pairs
        if corpus.task(task).kind in by_kind
    ]
    trained = [
        Unit(corpus, tasks, variant, rates_of(variant.method)[: settings.rate_trials], seeds)
        for variant in variants
        if is_trained(variant.method)
        for corpus, tasks in _task_groups(_fitting(pairs, variant), is_joint(variant.method))
    ]
    return [*priors, *baselines, *trained]


Pairs = list[tuple[PreparedCorpus, str]]


def _fitting(pairs: Pairs, variant: Variant) -> Pairs:
    return [pair for pair in pairs if fits(variant.method, pair[0].task(pair[1]).kind)]


def _task_groups(pairs: Pairs, together: bool) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Each task alone, or the tasks of each corpus together if it has several."""
    if not together:
        return [(corpus.name, (task,)) for corpus, task in pairs]
    groups: dict[str, list[str]] = {}
    for corpus, task in pairs:
        groups.setdefault(corpus.name, []).append(task)
    return [(corpus, tuple(tasks)) for corpus, tasks in groups.items() if len(tasks) > 1]


@dataclass(frozen=True, slots=True)
class Effort:
    """The number of processes, of one thread each, and the seconds after which no run starts."""

    jobs: int = 1
    time_limit_s: float = math.inf


def compare(
    place: Workplace, effort: Effort, on_progress: OnProgress, notice: Notice = no_notice
) -> list[Unit]:
    """Run what is not in the journal; return the units with all results so far.

    Tasks that cannot be learned or measured are refused before anything is trained.
    """
    deadline = time.monotonic() + effort.time_limit_s
    units = plan_units(place)
    _check_tasks(place, units, notice)
    _recall(place, units)
    with _pool(effort.jobs) as start:
        _pretrain(place, units, start, effort.jobs, on_progress)
        _run_units(place, units, start, _Limits(effort.jobs, deadline), on_progress)
    return units


def _check_tasks(place: Workplace, units: list[Unit], notice: Notice) -> None:
    """Refuse tasks that cannot be learned; tell once what the answers of each data set are."""
    told = set[tuple[str, str]]()
    for corpus, task in dict.fromkeys((unit.corpus, t) for unit in units for t in unit.tasks):
        prepared = corpora_at(place.prepared)[corpus]
        known = (prepared.data_set, task)
        tells = no_notice if known in told else notice
        check_task(prepared, task, place.settings.min_label_count, tells)
        told.add(known)
    for name in _without_task(place.settings.methods, units):
        notice(f"No task here is of a kind that the method {name} is for: it has no row.")


def _without_task(names: Sequence[str], units: list[Unit]) -> list[str]:
    """Methods that were asked for and that no task has; the defaults are for every kind."""
    present = {unit.variant.method for unit in units}
    is_asked = tuple(names) != DEFAULT_METHODS
    kinds = (*BASELINES, POPULAR, *FINETUNED)
    return [name for name in names if is_asked and name in kinds and name not in present]


@dataclass(frozen=True, slots=True)
class _Limits:
    jobs: int
    deadline: float


Start = Callable[..., "Future[Any]"]  # Any: the started function's result
"""Starts a function with its arguments."""


class _Inline:
    """The interface of a pool that runs every function immediately in this process."""

    def __enter__(self) -> Start:
        return self._start

    def __exit__(self, *_: object) -> None:
        return None

    def _start(self, function: Callable[..., Any], *given: Any) -> "Future[Any]":  # Any: as above
        future: Future[Any] = Future()
        future.set_result(function(*given))
        return future


class _Processes:
    """A pool of spawned processes of one thread each.

    They are not forked, because a device's context must not be inherited.
    """

    def __init__(self, jobs: int) -> None:
        self._pool = ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_become_worker
        )

    def __enter__(self) -> Start:
        return self._pool.submit

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _become_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end at Ctrl-C without a traceback


def _pool(jobs: int) -> _Inline | _Processes:
    return _Inline() if jobs == 1 else _Processes(jobs)


def _pretrain(
    place: Workplace, units: list[Unit], start: Start, jobs: int, on_progress: OnProgress
) -> None:
    trained = [unit for unit in units if is_trained(unit.variant.method)]
    needed = list(dict.fromkeys((unit.corpus, unit.variant.is_causal) for unit in trained))
    on_progress(Progress("pretraining", 0, len(needed), unit="backbones"))
    threads = max(1, jobs // max(1, len(needed)))
    futures = [start(pretrain_kind, place, corpus, kind, threads) for corpus, kind in needed]
    for done, future in enumerate(futures, 1):
        future.result()
        on_progress(Progress("pretraining", done, len(needed), unit="backbones"))


def pretrain_kind(place: Workplace, corpus_name: str, is_causal: bool, threads: int) -> None:
    """Pretrain one backbone on this number of threads, which would be idle otherwise."""
    corpus = corpora_at(place.prepared)[corpus_name]
    folder = backbone_folder(place.out, corpus, place.settings, is_causal)
    torch.set_num_threads(threads)
    ensure_backbone(folder, corpus, place.settings, is_causal, torch.device(place.device))
    torch.set_num_threads(1)


def _run_units(
    place: Workplace, units: list[Unit], start: Start, limits: _Limits, on_progress: OnProgress
) -> None:
    total = sum(unit.planned for unit in units)
    running: dict[Future[RunResult], tuple[Unit, RunSpec]] = {}
    known = sum(len(unit.results) for unit in units)
    on_progress(Progress("comparing", known, total, unit="runs"))
    while True:
        if time.monotonic() < limits.deadline:
            for unit, spec in _next_runs(units, running, limits.jobs):
                running[start(execute, place, spec)] = (unit, spec)
        if not running:
            return
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            unit, spec = running.pop(future)
            line = json.dumps(future.result())
            unit.results[spec] = json.loads(line)  # as the journal is read
            append_line(place.out / JOURNAL, line)
            done = sum(len(unit.results) for unit in units)
            on_progress(Progress("comparing", done, total, spec.name, "runs"))


def _next_runs(
    units: list[Unit], running: dict[Future[RunResult], tuple[Unit, RunSpec]], jobs: int
) -> Iterator[tuple[Unit, RunSpec]]:
    """The next runs, one for each idle process, in the order of the units."""
    busy = {spec for _, spec in running.values()}
    idle = jobs - len(busy)
    waiting = ((unit, spec) for unit in units for spec in unit.ready() if spec not in busy)
    for pair, _ in zip(waiting, range(idle), strict=False):
        yield pair


def _recall(place: Workplace, units: list[Unit]) -> None:
    """Add the results of finished runs from the journal to the units."""
    make_folder(place.out)
    finished = {result["key"]: result for result in read_journal(place.out / JOURNAL)}
    for unit in units:
        for spec in unit.trials:
            _take(place, unit, spec, finished)
        for spec in unit.final:
            _take(place, unit, spec, finished)


def _take(place: Workplace, unit: Unit, spec: RunSpec, finished: dict[str, RunResult]) -> None:
    result = finished.get(run_key(place, spec))
    if result is not None:
        unit.results[spec] = result


def read_journal(path: Path) -> list[RunResult]:
    """The results in a journal; a line cut short by an interruption is ignored."""
    if not path.exists():
        return []
    results = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            results.append(json.loads(line))
        except ValueError:
            continue
    return results
