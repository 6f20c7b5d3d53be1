"""The demo: from a data set to predictions; every step is a command that a user can type."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import peterrec_client
from peterrec.model.progress import Progress
from peterrec.service.errors import DemoFailed
from peterrec.service.jobs.progress_bar import ProgressBars
from peterrec.service.system.program import peterrec
from peterrec_client import (
    ClassificationPrediction,
    Prediction,
    RankingPrediction,
    TagsPrediction,
    ValuePrediction,
)

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""Signals that end the demo while it serves."""

START_TIMEOUT_S = 120.0
"""Longest start of the server: it compiles its kernels when it is started for the first time."""

PREDICTION_TIMEOUT_S = 30.0
"""Limit of the prediction, which may be the first one that the new server computes."""

TOP_K = 10
"""Items that are recommended."""

SHOWN_ITEMS = 5
"""Items of the history that are printed, the newest ones."""

SHOWN_LABELS = 10
"""Probabilities of one task that are printed, the largest ones."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of ``peterrec demo``.

    ``data`` is a MovieLens folder, None for the sample shop. The demo writes folders in ``out``.
    """

    data: Path | None
    out: Path
    port: int
    is_once: bool


@dataclass(frozen=True, slots=True)
class DemoTask:
    """A task to fine-tune: its name and the options of ``peterrec finetune`` that only it has."""

    name: str
    kind: str
    answers: Sequence[str]


RANKING = DemoTask(
    "recommendations", "ranking", ("--targets", "targets.parquet", "--target-column", "item_id")
)
TAGS = DemoTask("interests", "tags", ("--labels", "tags.parquet", "--label-column", "tag"))


def profile_task(column: str, kind: str = "classification") -> DemoTask:
    """A task on one column of the users' table."""
    return DemoTask(column, kind, ("--labels", "users.parquet", "--label-column", column))


@dataclass(frozen=True, slots=True)
class Recipe:
    """A data set's tasks, and settings that give good results on it within a few minutes."""

    tasks: tuple[DemoTask, ...]
    pretraining: tuple[str, ...]
    finetuning: tuple[str, ...] = ()


SHOP = Recipe(
    tasks=(
        profile_task("gender"),
        profile_task("age_group"),
        TAGS,
        profile_task("monthly_spend", "value"),
        RANKING,
    ),
    pretraining=("--dilations", "1,4,8", "--epochs", "4"),
)
FILMS = Recipe(
    tasks=(
        profile_task("gender"),
        profile_task("age"),
        profile_task("occupation"),
        TAGS,
        RANKING,
    ),
    pretraining=(
        *("--dilations", "1,4,16,32", "--max-len", "200"),
        *("--batch-size", "32", "--lr", "0.006", "--epochs", "4"),
    ),
    finetuning=("--bottleneck", "16", "--item-dropout", "0.5"),
)
FILMS_WITHOUT_PROFILES = Recipe((TAGS, RANKING), FILMS.pretraining, FILMS.finetuning)


def run_demo(options: DemoOptions) -> None:
    """Train, serve, register and predict; then keep serving, unless ``is_once`` is set."""
    console = Console()
    started = time.monotonic()
    data, backbone = options.out / "data", options.out / "backbone"
    for folder in (data, backbone, options.out / "server"):
        shutil.rmtree(folder, ignore_errors=True)
    recipe = make_data(options.data, data, console)
    pretrain(recipe, data, backbone, console)
    for task in recipe.tasks:
        finetune(task, recipe, data, backbone, bundle_of(task, options.out), console)
    with _server(console, backbone, options) as server:
        for task in recipe.tasks:
            step(console, "push", bundle_of(task, options.out), "--task", task.name, server=server)
        _show_user(console, data, server)
        console.print(f"\nThe demo took {time.monotonic() - started:.0f} s.", highlight=False)
        if not options.is_once:
            page = f"{server.url}/console"
            console.print(f"Serving on {server.url} until you press Ctrl-C; see {page}")
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            signal.sigwait(STOPPING)


@dataclass(frozen=True, slots=True)
class DemoServer:
    """A server that the demo pushes to, and a key that may do that and predict."""

    url: str
    api_key: str


def make_data(source: Path | None, data: Path, console: Console) -> Recipe:
    """Write the demo's data: MovieLens from its folder, or a sample shop."""
    if source is None:
        step(console, "sample-data", "--out", data)
        return SHOP
    step(console, "convert", "movielens", source, "--out", data)
    return FILMS if (data / "users.parquet").exists() else FILMS_WITHOUT_PROFILES


def pretrain(recipe: Recipe, data: Path, backbone: Path, console: Console) -> None:
    """Pretrain the demo's backbone."""
    step(console, "pretrain", *_events(data), "--out", backbone, *recipe.pretraining)


def finetune(
    task: DemoTask, recipe: Recipe, data: Path, backbone: Path, out: Path, console: Console
) -> None:
    """Fine-tune one task of the demo into the bundle ``out``."""
    answers = [str(data / a) if a.endswith(".parquet") else a for a in task.answers]
    kind = ("--backbone", backbone, "--kind", task.kind)
    to = ("--out", out, "--overwrite")
    step(console, "finetune", *kind, *_events(data), *answers, *recipe.finetuning, *to)


def bundle_of(task: DemoTask, out: Path) -> Path:
    """The file of a task's bundle."""
    return out / f"{task.name}.bundle"


def _events(data: Path) -> tuple[str | Path, ...]:
    return ("--interactions", data / "histories.parquet", "--order-column", "position")


def step(console: Console, *arguments: str | Path, server: DemoServer | None = None) -> None:
    """Print a ``peterrec`` command and run it; DemoFailed if it fails."""
    shown = " ".join(str(argument) for argument in arguments)
    console.print(f"\n[bold]$ peterrec {shown}[/bold]", highlight=False, soft_wrap=True)
    access = ["--url", server.url, "--api-key", server.api_key] if server else []
    command = peterrec(*(str(argument) for argument in arguments), *access)
    if subprocess.run(command, check=False, env=_environment()).returncode != 0:
        raise DemoFailed(f"`peterrec {arguments[0]}` failed; its message is above.")


def _environment() -> dict[str, str]:
    """Environment in which idle threads sleep: on a busy machine, spinning ones take most of the
    time."""
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}


@contextmanager
def _server(console: Console, backbone: Path, options: DemoOptions) -> Iterator[DemoServer]:
    """Run ``peterrec serve`` with a separate data directory for the length of the block."""
    arguments = ["serve", "--backbone", str(backbone), "--port", str(options.port)]
    arguments += ["--data-dir", str(options.out / "server"), "--metrics-port", "0"]
    console.print(f"\n[bold]$ peterrec {' '.join(arguments)}[/bold]", highlight=False)
    process = subprocess.Popen(peterrec(*arguments), stdout=subprocess.PIPE, text=True)
    try:
        with ProgressBars() as bars:
            bars(Progress("starting the server: kernels are compiled, once"))
            key = _first_key(console, process)
            server = DemoServer(f"http://127.0.0.1:{options.port}", key)
            _wait_until_ready(server, process)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _first_key(console: Console, process: "subprocess.Popen[str]") -> str:
    """Print the server's output, and return the API key that it prints once."""
    found: list[str] = []
    has_key = threading.Event()

    def relay() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            console.print(line.rstrip(), markup=False, highlight=False)
            if match := re.search(r"prk_[0-9a-f]+_[0-9a-f]+", line):
                found.append(match.group())
                has_key.set()
        has_key.set()

    threading.Thread(target=relay, daemon=True).start()
    has_key.wait(START_TIMEOUT_S)
    if not found:
        raise DemoFailed("the server printed no key; its message is above.")
    return found[0]


def _wait_until_ready(server: DemoServer, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with peterrec_client.Client(server.url) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if client.ready().is_ready:
                    return
            except peterrec_client.PeterRecError:
                pass
            time.sleep(0.1)
    raise DemoFailed("the server did not become ready; its message is above.")


def _show_user(console: Console, data: Path, server: DemoServer) -> None:
    """Predict all tasks for one user, and print the answers with titles instead of item ids."""
    titles = _titles(data / "items.parquet")
    user, history = _last_user(data / "histories.parquet")
    with peterrec_client.Client(server.url, server.api_key) as client:
        try:
            answer = client.predict_user(history, top_k=TOP_K, timeout_s=PREDICTION_TIMEOUT_S)
        except peterrec_client.PeterRecError as error:
            raise DemoFailed(f"the prediction failed: {error}") from error
    newest = ", ".join(titles.get(item, item) for item in history[-SHOWN_ITEMS:])
    console.rule(f"user {user}: {len(history)} items, newest {newest}", align="left")
    console.print(_profile_card(answer.results, _known_profile(data, user)))
    console.print(_recommendations(answer.results, titles))
    _show_curl(console, server, history[-SHOWN_ITEMS:])


def _show_curl(console: Console, server: DemoServer, history: list[str]) -> None:
    body = json.dumps({"history": history, "tasks": "all"})
    console.print("The same call with curl, for the newest items only:")
    console.print(
        f"curl -s {server.url}/users/predict -H 'Authorization: Bearer {server.api_key}' "
        f"-d '{body}'",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _profile_card(results: Mapping[str, Prediction], known: Mapping[str, object]) -> Table:
    table = Table("attribute", "prediction", "probabilities", "in the data", title="Profile card")
    for task, result in results.items():
        match result:
            case ClassificationPrediction():
                answer, scores = result.label, result.scores
            case TagsPrediction():
                answer, scores = ", ".join(tag.label for tag in result.tags), result.scores
            case ValuePrediction():
                answer, scores = f"{result.value:.1f}", {}
            case _:
                continue  # rankings have a table of their own
        table.add_row(task, answer or "none", _probabilities(scores), str(known.get(task, "")))
    return table


def _probabilities(scores: Mapping[str, float]) -> str:
    ordered = sorted(scores.items(), key=lambda pair: -pair[1])
    shown = "  ".join(f"{label} {score:.0%}" for label, score in ordered[:SHOWN_LABELS])
    return f"{shown}  …" if len(ordered) > SHOWN_LABELS else shown


def _recommendations(results: Mapping[str, Prediction], titles: Mapping[str, str]) -> Table:
    table = Table("", "item", "score", title=f"Top {TOP_K} recommendations")
    rankings = [result for result in results.values() if isinstance(result, RankingPrediction)]
    for ranking in rankings:
        for place, item in enumerate(ranking.items, 1):
            table.add_row(str(place), titles.get(item.id, item.id), f"{item.score:.2f}")
    return table


def _titles(path: Path) -> dict[str, str]:
    columns = pq.read_table(path, columns=["item_id", "title"]).to_pydict()
    return dict(zip(columns["item_id"], columns["title"], strict=True))


def _last_user(path: Path) -> tuple[str, list[str]]:
    """The file's last user and that user's items, oldest first."""
    columns = pq.read_table(path, columns=["user_id", "item_id", "position"]).to_pydict()
    user = columns["user_id"][-1]
    own = [
        (position, item)
        for owner, item, position in zip(
            columns["user_id"], columns["item_id"], columns["position"], strict=True
        )
        if owner == user
    ]
    return user, [item for _, item in sorted(own)]


def _known_profile(data: Path, user: str) -> dict[str, object]:
    """The user's true attributes and tags in the data, by task name."""
    known: dict[str, object] = {}
    if (data / "users.parquet").exists():
        for row in pq.read_table(data / "users.parquet").to_pylist():
            if row["user_id"] == user:
                known |= row
    tags = pq.read_table(data / "tags.parquet").to_pylist()
    known[TAGS.name] = ", ".join(row["tag"] for row in tags if row["user_id"] == user)
    return known
