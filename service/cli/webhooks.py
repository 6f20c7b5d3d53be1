"""Commands about webhooks: URLs that are told of every change of the registry."""

from typing import Annotated
from urllib.parse import quote

import typer

from peterrec.model.documents import Document
from peterrec.service.cli.server_options import ApiKey, Url, print_json, print_table
from peterrec.service.cli.shared_options import AsJson
from peterrec.service.jobs.server_calls import DEFAULT_URL, server

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the webhook.")]
OfTenant = Annotated[
    str | None,
    typer.Option(
        metavar="TENANT",
        help="Tenant of the webhooks; another one than your own needs an operator's key.",
        show_default="that of the API key",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    webhooks = typer.Typer(
        help="Have URLs told of every change of the registry.", no_args_is_help=True
    )
    webhooks.command("list")(list_webhooks)
    webhooks.command("show")(show_webhook)
    webhooks.command("put")(put_webhook)
    webhooks.command("delete")(delete_webhook)
    app.add_typer(webhooks, name="webhooks")


def list_webhooks(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    tenant: OfTenant = None,
    as_json: AsJson = False,
) -> None:
    """List webhooks, and whether they are told."""
    path = "/webhooks" if tenant is None else f"/tenants/{quote(tenant, safe='')}/webhooks"
    with server(url, api_key) as to:
        found = to.get(path)
    if as_json:
        print_json(found)
        return
    rows = [(each["name"], each["url"], _state(each), str(each["cursor"])) for each in found]
    print_table(("name", "url", "state", "told up to"), rows)


def show_webhook(
    name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Show a webhook, how far it was told, and why it fails."""
    with server(url, api_key) as to:
        found = to.get(_path(name))
    if as_json:
        print_json(found)
        return
    rows = [
        (key.replace("_", " "), str(value)) for key, value in found.items() if value is not None
    ]
    print_table(("", name), rows)


def put_webhook(
    name: Name,
    to_url: Annotated[
        str, typer.Argument(metavar="URL", help="An https URL with a public address.")
    ],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    secret: Annotated[
        str | None,
        typer.Option(
            help="`whsec_` and the base64 of 24 to 64 bytes.",
            show_default="the one until now, or a new one that is printed once",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Have a URL told of every change from now on, or move a webhook to another URL."""
    body: Document = {"url": to_url}
    if secret is not None:
        body["secret"] = secret
    with server(url, api_key) as to:
        found = to.change("PUT", _path(name), body)
    if as_json:
        print_json(found)
        return
    print(f"{name} is told of every change after revision {found['cursor']}.")
    if found["secret"] is not None and secret is None:
        print(f"Its secret, which is shown only this once: {found['secret']}")


def delete_webhook(
    name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Tell a webhook nothing any more."""
    with server(url, api_key) as to:
        found = to.change("DELETE", _path(name))
    if as_json:
        print_json(found)
    else:
        print(f"{name} is told nothing any more.")


def _path(name: str) -> str:
    return f"/webhooks/{quote(name, safe='')}"


def _state(hook: Document) -> str:
    if not hook["is_enabled"]:
        return f"disabled: {hook['disabled_since']}"
    if hook["failures"]:
        return f"{hook['failures']} failures: {hook['last_error']}"
    return "told"
