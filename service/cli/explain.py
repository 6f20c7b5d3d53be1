"""The command that names the items of a history that moved an answer most."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from peterrec.model.errors import HistoriesMissing
from peterrec.model.progress import Progress
from peterrec.model.spec import MAX_HISTORY_ITEMS
from peterrec.service.cli.server_options import Url, complete_task, print_json, print_table
from peterrec.service.cli.settings_options import takes_settings
from peterrec.service.cli.shared_options import AsJson, Quiet
from peterrec.service.errors import ServerRefused
from peterrec.service.jobs.options import INPUT, TableOptions
from peterrec.service.jobs.server_calls import DEFAULT_URL, server
from peterrec.service.predict.explanation import MAX_EXPLAINED_ITEMS
from peterrec.service.predict.schemas import MAX_TOP_K

if TYPE_CHECKING:
    from peterrec.service.jobs.reading import ConsoleObserver
    from peterrec_client import Explanation, Prediction
    from peterrec_client.questions import PredictOptions

Items = Annotated[
    list[str] | None,
    typer.Argument(metavar="ITEM", help="The user's items, oldest first; or give --user."),
]


def register(app: typer.Typer) -> None:
    """Add this group's command."""
    app.command()(takes_settings(explain))


def explain(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            autocompletion=complete_task,
            help="Task of a running server; with --backbone, a bundle file.",
        ),
    ],
    table: TableOptions,
    items: Items = None,
    backbone: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Backbone folder of the bundle file."),
    ] = None,
    interactions: Annotated[
        Path | None,
        typer.Option(help="Events of users, one of whom is --user.", rich_help_panel=INPUT),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(help="User whose history in --interactions is read.", rich_help_panel=INPUT),
    ] = None,
    count: Annotated[
        int,
        typer.Option(
            "--count", "-n", min=1, max=MAX_EXPLAINED_ITEMS, help="Items to name per output."
        ),
    ] = 5,
    outputs: Annotated[
        Literal["answer", "all"],
        typer.Option(help="Explain what the answer rests on, or all labels or tags."),
    ] = "answer",
    newest: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_HISTORY_ITEMS, help="Look at so many different items only, the newest."
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, max=MAX_TOP_K, help="Items that a ranking recommends.")
    ] = 3,
    url: Url = DEFAULT_URL,
    api_key: Annotated[
        str | None, typer.Option(envvar="PETERREC_API_KEY", help="API key with the scope predict.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Name the items of a history that moved an answer most, and how far each of them did.

    An item's contribution is what a score loses when the item is left out of the history.
    """
    from peterrec.service.jobs.reading import observing
    from peterrec_client import Explain

    options: PredictOptions = {"top_k": top_k, "explain": Explain(count, outputs, newest)}
    with observing(quiet) as observer:
        history = _history(items, table, interactions, user, observer)
        if backbone is not None:
            found = _by_bundle(Path(subject), backbone, history, options, observer)
        else:
            _require_task(subject)
            with server(url, api_key) as to:
                found = to.client.predict(subject, history, **options)
    if as_json:
        print_json(json.loads(msgspec.json.encode(found)))
    else:
        _print(found)


def _history(
    items: Sequence[str] | None,
    table: TableOptions,
    interactions: Path | None,
    user: str | None,
    observer: "ConsoleObserver",
) -> Sequence[str]:
    """The items on the command line, or those of a user in a file."""
    if (interactions is None) != (user is None) or bool(items) == (user is not None):
        raise typer.BadParameter("give the items of one user, or --interactions and --user")
    if interactions is None:
        return items or ()
    from peterrec.model.data.interactions import read_histories

    histories = read_histories(table.source_of(interactions), observer)
    if user not in histories.users:
        raise HistoriesMissing(
            f"{interactions} has no events of user {user!r:.80}.",
            hint=f"Users are in the column {table.user_column!r}; `user_column` names another.",
        )
    return histories.items_of(histories.users.index(user))


def _by_bundle(
    bundle: Path,
    backbone: Path,
    history: Sequence[str],
    options: "PredictOptions",
    observer: "ConsoleObserver",
) -> "Prediction":
    """The answer and explanation of a bundle file, computed in this process."""
    from peterrec.service.library.backbone import load_backbone
    from peterrec.service.library.task import load_bundle

    observer.progress(Progress("loading the backbone"))
    task = load_bundle(bundle, load_backbone(backbone))
    (found,) = task.predict(
        [history], top_k=options["top_k"], explain=options["explain"], progress=False
    )
    return found


def _require_task(subject: str) -> None:
    if Path(subject).is_file():
        raise typer.BadParameter(f"{subject} is a file; a bundle file needs --backbone")


def _print(found: "Prediction") -> None:
    explanation = found.explanation
    assert explanation is not None
    if explanation.error is not None:
        error = explanation.error
        raise ServerRefused(error.code, error.message, error.hint)
    rows = [
        (
            f"{output.output} {output.score:.4f}" if at == 0 else "",
            str(item.id),
            f"{item.contribution:+.4f}",
            str(item.times),
        )
        for output in explanation.outputs
        for at, item in enumerate(output.items)
    ]
    print_table(("output and its score", "item", "contribution", "times"), rows)
    print(_summary(found, explanation))


def _summary(found: "Prediction", explanation: "Explanation") -> str:
    parts = [
        f"{explanation.items_looked_at} different items looked at ({explanation.method})",
        f"unit: {explanation.unit}",
    ]
    if explanation.items_without_effect:
        parts.append(f"{explanation.items_without_effect} without an effect: unknown or too old")
    if explanation.items_left_out:
        parts.append(f"{explanation.items_left_out} older ones not looked at")
    return "; ".join(parts)
