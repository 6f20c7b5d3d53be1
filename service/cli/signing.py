"""Commands that generate keys and sign bundles with them."""

from pathlib import Path
from typing import Annotated

import typer

from peterrec.model.disk import read_bytes, write_bytes

Keys = Annotated[
    list[Path],
    typer.Option("--key", help="File of a private key; repeatable."),
]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(keygen)
    app.command()(sign)


def keygen(
    out: Annotated[
        Path,
        typer.Option(
            metavar="NAME", help="Path without suffix: NAME.key and NAME.pub are written."
        ),
    ],
) -> None:
    """Generate a key pair for signing: keep NAME.key secret, give NAME.pub to the servers."""
    from peterrec.patches.bundle.signatures import SigningKey, key_paths

    key = SigningKey.generate()
    private, public = key_paths(out)
    key.write(private, public)
    print(f"Wrote {private} (keep it secret) and {public} (for the servers).")
    print(f"  key id {key.key_id}")


def sign(
    file: Annotated[Path, typer.Argument(help="Bundle file to sign.")],
    key: Keys,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write to this file instead of replacing FILE."),
    ] = None,
) -> None:
    """Add signatures to a bundle and keep those it has; its digest, the version id, changes."""
    from peterrec.patches.bundle.bundle import digest_of, format_digest, sign_bundle
    from peterrec.patches.bundle.signatures import SigningKey

    signed = sign_bundle(read_bytes(file), [SigningKey.read(path) for path in key])
    target = out or file
    write_bytes(target, signed)
    print(f"Wrote {target}: {format_digest(digest_of(signed))}")
