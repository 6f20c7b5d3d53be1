"""Commands about which items of a ranking task are to be had: sold out, withdrawn, in stock."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

import typer

from peterrec.service.cli.server_options import ApiKey, IfMatch, Task, Url, print_json
from peterrec.service.cli.shared_options import AsJson
from peterrec.service.jobs.options import Delimiter, Missing
from peterrec.service.jobs.server_calls import DEFAULT_URL, server


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    availability = typer.Typer(
        help="Show and replace the items of a ranking task that are to be had now.",
        no_args_is_help=True,
    )
    availability.command("show")(show_availability)
    availability.command("put")(put_availability)
    availability.command("clear")(clear_availability)
    app.add_typer(availability, name="availability")


def show_availability(
    task: Task, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """List the items of a task that are not to be had, or the only ones that are."""
    with server(url, api_key) as to:
        found = to.get(_path(task))
    if as_json:
        print_json(found)
        return
    if found["mode"] is None:
        print(f"All items of {task} are available.")
        return
    print(f"{found['count']} items of {task} are {found['mode']}:")
    for item in found["items"]:
        print(item)


def put_availability(
    task: Task,
    file: Annotated[Path, typer.Argument(help="Table of items, such as a CSV or Parquet file.")],
    mode: Annotated[
        Literal["unavailable", "available"],
        typer.Option("--are", help="What the items of the table are; the others are the opposite."),
    ],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    item_column: Annotated[str, typer.Option(help="Column of item ids.")] = "item_id",
    delimiter: Delimiter = None,
    missing: Missing = None,
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Replace the list of a task's items; every replica follows within two seconds."""
    from peterrec.model.data.tables import TableSource, read_parts
    from peterrec.model.data.values import read_texts

    source = TableSource(file, delimiter, missing=tuple(missing or ()))
    texts = read_texts(read_parts(source, [item_column]), item_column)
    items = [item for part in texts for item in part]
    with server(url, api_key) as to:
        put = to.change("PUT", _path(task), {mode: items}, if_match=if_match)
    if as_json:
        print_json(put)
        return
    print(f"{put['count']} items of {task} are {mode} from now on.")
    if put["unknown"]:
        some = ", ".join(put["unknown_items"])
        print(f"{put['unknown']} of them are not in the catalog that answers now: {some}")


def clear_availability(
    task: Task,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Remove the list of a task: all items are to be had."""
    with server(url, api_key) as to:
        cleared = to.change("DELETE", _path(task), if_match=if_match)
    if as_json:
        print_json(cleared)
        return
    print(f"All items of {task} are available from now on.")


def _path(task: str) -> str:
    return f"/tasks/{quote(task, safe='')}/availability"
