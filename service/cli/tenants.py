"""Commands about tenants and their API keys."""

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from peterrec.model.documents import Document
from peterrec.patches.registry.records import LEAST_WEIGHT, MOST_WEIGHT
from peterrec.service.cli.registry import (
    DEFAULT_DATA_DIR,
    DEFAULT_PREFIX,
    Prefix,
    in_registry,
    registry_address,
)
from peterrec.service.cli.server_options import ApiKey, Url, print_json, print_table
from peterrec.service.cli.shared_options import AsJson
from peterrec.service.jobs.server_calls import DEFAULT_URL, server

if TYPE_CHECKING:
    from peterrec.patches.registry.registry import Registry

QUOTAS = (
    "tasks",
    "versions",
    "bundle_bytes",
    "head_bytes",
    "patch_bytes",
    "keys",
    "outputs",
    "row_work",
    "answer_bytes",
    "requests_per_s",
    "rows_per_s",
    "waiting_rows",
    "streams",
)
"""Names of the quotas, in the order in which they are shown."""

Name = Annotated[str, typer.Argument(metavar="TENANT", help="Name of the tenant.")]
KeyId = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the key, from `peterrec keys list`.")
]
OfTenant = Annotated[
    str | None,
    typer.Option(
        metavar="TENANT",
        help="Tenant of the key; another one than your own needs an operator's key.",
        show_default="that of the API key",
    ),
]
AS_IT_IS = "as it is; none for a new tenant"
Quota = Annotated[int | None, typer.Option(min=0, help="Quota.", show_default=AS_IT_IS)]
OfBundle = Annotated[
    int | None, typer.Option(min=0, help="Quota of each bundle.", show_default=AS_IT_IS)
]
RequestRate = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Quota of predictions per second, and of other calls per second.",
        show_default=AS_IT_IS,
    ),
]
RowRate = Annotated[
    int | None, typer.Option(min=1, help="Quota of rows per second.", show_default=AS_IT_IS)
]
WaitingRows = Annotated[
    int | None,
    typer.Option(min=0, help="Quota of rows that wait for their answers.", show_default=AS_IT_IS),
]
Streams = Annotated[
    int | None, typer.Option(min=0, help="Quota of open streams.", show_default=AS_IT_IS)
]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    keys = typer.Typer(help="Create, list, rotate and revoke API keys.", no_args_is_help=True)
    keys.command("create")(create_key)
    keys.command("list")(list_keys)
    keys.command("rotate")(rotate_key)
    keys.command("revoke")(revoke_key)
    app.add_typer(keys, name="keys")
    tenants = typer.Typer(
        help="Create, show, bound and delete tenants, with an operator's key.",
        no_args_is_help=True,
    )
    tenants.command("list")(list_tenants)
    tenants.command("show")(show_tenant)
    tenants.command("put")(put_tenant)
    tenants.command("delete")(delete_tenant)
    app.add_typer(tenants, name="tenants")


def create_key(
    scope: Annotated[
        list[str],
        typer.Option(
            help="What the key may do: predict, vectors or admin, for some tasks only with :GLOB "
            "behind it, or operator; repeatable."
        ),
    ],
    name: Annotated[str, typer.Option(help="Holder of the key.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    tenant: OfTenant = None,
    expires_in_days: Annotated[
        float | None,
        typer.Option(min=0, help="Days until the key is refused.", show_default="never"),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(help="Write to the registry at this URL directly: for the first key."),
    ] = None,
    redis_prefix: Prefix = DEFAULT_PREFIX,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write to the embedded registry of this data directory directly."
        ),
    ] = None,
) -> None:
    """Create an API key and print it once."""
    lifetime = None if expires_in_days is None else timedelta(days=expires_in_days)
    expires_at = None if lifetime is None else datetime.now(UTC) + lifetime
    if redis_url is not None or data_dir is not None:
        create = partial(_create_in, tenant, scope, name, expires_at)
        with registry_address(redis_url, data_dir or DEFAULT_DATA_DIR) as url:
            print(in_registry(url, redis_prefix, create))
        return
    body: Document = {"name": name, "scopes": scope}
    if expires_at is not None:
        body["expires_at"] = expires_at.isoformat()
    with server(url, api_key) as to:
        print(to.change("POST", _keys_path(tenant), body)["api_key"])


def list_keys(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    tenant: OfTenant = None,
    as_json: AsJson = False,
) -> None:
    """List the API keys, without their secrets."""
    with server(url, api_key) as to:
        listed = to.get(_keys_path(tenant))
    if as_json:
        print_json(listed)
        return
    rows = [
        (
            key["key_id"],
            key["name"],
            " ".join(key["scopes"]),
            key["created_at"][:19],
            _time(key["expires_at"], "never"),
            _time(key["last_used_at"], "not yet"),
            "; ".join(map(_secret, key["secrets"])),
        )
        for key in listed
    ]
    print_table(("id", "name", "scopes", "created", "expires", "last used", "secrets"), rows)


def rotate_key(
    key_id: KeyId,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    tenant: OfTenant = None,
    overlap_hours: Annotated[
        float,
        typer.Option(min=0, help="Hours for which the secret until now stays valid beside it."),
    ] = 24.0,
) -> None:
    """Give a key a new secret and print it once; revoke the old one when nobody uses it."""
    with server(url, api_key) as to:
        path = f"{_key_path(tenant, key_id)}:rotate"
        print(to.change("POST", path, {"overlap_s": overlap_hours * 3600})["api_key"])


def revoke_key(
    key_id: KeyId,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    tenant: OfTenant = None,
    secret: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="NUMBER",
            help="Revoke only this one of the key's two secrets.",
            show_default="the whole key",
        ),
    ] = None,
) -> None:
    """Revoke an API key, or one of its secrets, from now on."""
    path = _key_path(tenant, key_id)
    with server(url, api_key) as to:
        to.change("DELETE", path if secret is None else f"{path}/secrets/{secret}")
    which = f"Key {key_id}" if secret is None else f"Secret {secret} of key {key_id}"
    print(f"{which} is revoked.")


def list_tenants(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the tenants that the key may see, with their quotas."""
    with server(url, api_key) as to:
        listed = to.get("/tenants")
    if as_json:
        print_json(listed)
        return
    rows = [
        (
            found["tenant"],
            *(str(found["quotas"].get(name) or "") for name in QUOTAS),
            found["description"],
        )
        for found in listed
    ]
    print_table(("tenant", *map(_words, QUOTAS), "description"), rows)


def show_tenant(
    tenant: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Show what a tenant uses of its quotas."""
    with server(url, api_key) as to:
        usage = to.get(f"{_path(tenant)}/usage")
    if as_json:
        print_json(usage)
        return
    rows = []
    for name in (name for name in usage if name != "tenant"):
        rows.append((_words(name), _shown(usage[name]["used"]), _shown(usage[name]["limit"])))
    print_table(("of", "used", "quota"), rows)


def put_tenant(
    tenant: Name,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    description: Annotated[
        str | None, typer.Option(help="Text for people.", show_default="as it is")
    ] = None,
    tasks: Quota = None,
    versions: Quota = None,
    bundle_bytes: Quota = None,
    head_bytes: Quota = None,
    patch_bytes: Quota = None,
    keys: Quota = None,
    outputs: OfBundle = None,
    row_work: OfBundle = None,
    answer_bytes: OfBundle = None,
    requests_per_s: RequestRate = None,
    rows_per_s: RowRate = None,
    waiting_rows: WaitingRows = None,
    streams: Streams = None,
    weight: Annotated[
        float | None,
        typer.Option(
            min=LEAST_WEIGHT,
            max=MOST_WEIGHT,
            help="Part of the device while several tenants wait for it, relative to the others'.",
            show_default="as it is; 1 for a new tenant",
        ),
    ] = None,
    no_quota: Annotated[
        list[str],
        typer.Option(metavar="NAME", help=f"Remove this quota ({', '.join(QUOTAS)}); repeatable."),
    ] = [],  # noqa: B006  # typer copies it
    as_json: AsJson = False,
) -> None:
    """Create a tenant, or change what is given of one; everything else stays."""
    unknown = sorted(set(no_quota) - set(QUOTAS))
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]!r} is none of {', '.join(QUOTAS)}.", param_hint="--no-quota"
        )
    stored = (tasks, versions, bundle_bytes, head_bytes, patch_bytes, keys)
    of_bundles = (outputs, row_work, answer_bytes)
    of_requests = (requests_per_s, rows_per_s, waiting_rows, streams)
    given = dict(zip(QUOTAS, (*stored, *of_bundles, *of_requests), strict=True))
    with server(url, api_key) as to:
        before = next((t for t in to.get("/tenants") if t["tenant"] == tenant), None)
        quotas: Document = dict(before["quotas"]) if before else {}
        quotas |= {name: limit for name, limit in given.items() if limit is not None}
        quotas |= dict.fromkeys(no_quota)
        text = description if description is not None else (before or {}).get("description", "")
        part = weight if weight is not None else (before or {}).get("weight", 1.0)
        body = {"description": text, "quotas": quotas, "weight": part}
        revision = before["revision"] if before and before["revision"] else None
        put = to.change("PUT", _path(tenant), body, if_match=revision)
    if as_json:
        print_json(put)
        return
    verb = "changed" if before else "created"
    print(f"Tenant {tenant} is {verb}, at registry revision {put['registry_revision']}.")


def delete_tenant(
    tenant: Name,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase a tenant with its tasks, keys and bundles; this cannot be undone."""
    if not yes:
        typer.confirm(f"Erase tenant {tenant} with all its tasks and keys?", abort=True, err=True)
    with server(url, api_key) as to:
        deleted = to.change("DELETE", _path(tenant))
    if as_json:
        print_json(deleted)
        return
    erased = ", ".join(f"{amount} {what}" for what, amount in deleted["erased"].items())
    print(f"Tenant {tenant} is deleted: {erased}.")


def _words(name: str) -> str:
    return name.replace("_per_s", " per s").replace("_", " ")


def _shown(amount: float | None) -> str:
    return "none" if amount is None else f"{amount:g}" if amount < 1e5 else f"{amount:.0f}"


def _path(tenant: str) -> str:
    return f"/tenants/{quote(tenant, safe='')}"


def _keys_path(tenant: str | None) -> str:
    return "/keys" if tenant is None else f"{_path(tenant)}/keys"


def _key_path(tenant: str | None, key_id: str) -> str:
    return f"{_keys_path(tenant)}/{quote(key_id, safe='')}"


def _time(text: str | None, otherwise: str) -> str:
    return text[:19] if text else otherwise


def _secret(secret: Document) -> str:
    """Describe one secret of a key in a few words."""
    end = f" until {secret['expires_at'][:19]}" if secret["expires_at"] else ""
    return f"{secret['number']}{end}, {_time(secret['last_used_at'], 'not used')}"


async def _create_in(
    tenant: str | None,
    scopes: list[str],
    name: str,
    expires_at: datetime | None,
    registry: "Registry",
) -> str:
    from peterrec.patches.identity import DEFAULT_TENANT, TenantId
    from peterrec.patches.registry.api_keys import parse_scope

    of = DEFAULT_TENANT if tenant is None else TenantId(tenant)
    parsed = [parse_scope(scope) for scope in scopes]
    return (await registry.keys.create(of, parsed, name, expires_at=expires_at)).plain_text
