"""``mlflow exim verify``, ``sign`` and ``keygen``."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options
from mlflow_exim_plugin.cli.output import say, show_json, size_text
from mlflow_exim_plugin.cli.progress import StatusLine
from mlflow_exim_plugin.errors import ExitCode, UsageError
from mlflow_exim_plugin.options import (
    KEY_KINDS,
    KEY_PASSPHRASE_VARIABLE,
    Checking,
    Opening,
    Scaling,
    Signing,
)

if TYPE_CHECKING:
    from mlflow_exim_plugin.operations.proving.checks import Verification


@click.command(cls=Command)
@archive_argument
@asks("registry_uri", "artifacts_destination", checking=Checking, opening=Opening, scaling=Scaling)
@output_options
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    archive: str,
    output: str,
    checking: Checking,
    opening: Opening,
    scaling: Scaling,
) -> None:
    """Check every byte and document of ARCHIVE, a path or any fsspec URL, against the format.

    Findings have the numbers of the specification: E for what must be, W for what should be, S for
    signatures. The exit code is 5 when something must not be so, and 6 when not all of --key have
    signed. Without --key and --root it tells whether the archive agrees with itself, not whose it
    is.

    Example:

      mlflow exim verify backup.tar.zst --key alice.pub
    """
    from mlflow_exim_plugin.operations.proving.verify import verify as run_verify

    def share(done_bytes: int, total_bytes: int) -> str:
        return f"{done_bytes / max(total_bytes, 1):.0%} of {size_text(total_bytes)}"

    with StatusLine(share) as progress:
        asked = replace(checking, progress=progress)
        result = run_verify(archive, opening=opening, checking=asked, scaling=scaling)
    if output == "json":
        show_json(result.to_dict())
    else:
        _tell(result)
    if not result.valid:
        ctx.exit(ExitCode.INVALID_ARCHIVE)
    if not result.ok:
        ctx.exit(ExitCode.SIGNATURE)


def _tell(result: Verification) -> None:
    for finding in result.findings:
        say(str(finding))
    size = f"{result.members} members, {size_text(result.size_bytes)}"
    if result.valid:
        trust = "authenticity not checked: compare the root, or give --root or --key"
        if result.authentic is not None:
            known = ["has the expected root"] if result.expected_root is not None else []
            if result.signed is not None:
                known.append("signed" if result.signed else "not signed as asked for")
            trust = ", ".join(known)
        how = "Consistent" if result.level == "full" else "Consistent as far as was looked"
        say(f"{how}: {size}; {trust}")
        say(f"Root sha256:{result.root}")
        if result.content_root:
            say(f"Content root sha256:{result.content_root}")
    else:
        unhurt = f"{len(result.damaged)} damaged"
        if result.level == "full":
            unhurt += f", {result.members - len(result.damaged)} as they were packed"
        say(f"Damaged: {size}; {unhurt}")
        say(f"Claimed root sha256:{result.claimed_root}")
    for signature in result.signatures:
        say(f"Signed by {signature} [{', '.join(signature.keys)}]")
    if result.limits:
        others = ", ".join(f"{name} {most}" for name, most in result.limits.items())
        say(f"Read with other limits than the format's: {others}")
    if result.not_looked_at:
        say(f"Not looked at: {result.not_looked_at}")
    if result.seed is not None:
        say(f"Members were chosen by the seed {result.seed}")


def ask_passphrase() -> str:
    """Return the passphrase of a key, asked for at the terminal.

    Raises:
        UsageError: There is no terminal.
    """
    return _asked(confirmation_prompt=False)


def _asked(*, confirmation_prompt: bool) -> str:
    if not sys.stdin.isatty():
        raise UsageError(
            "there is no terminal to ask for the passphrase at",
            f"put it into {KEY_PASSPHRASE_VARIABLE}",
        )
    text: str = click.prompt(
        "Passphrase of the key",
        hide_input=True,
        confirmation_prompt=confirmation_prompt,
        err=True,
    )
    return text


@click.command(cls=Command)
@archive_argument
@click.option(
    "--key",
    required=True,
    metavar="KEY",
    help="Private key: a PEM file, env:NAME of a variable that holds one, or a URI of "
    "securesystemslib such as awskms:..., gcpkms:..., azurekms:..., hsm:..., with --public-key.",
)
@asks("registry_uri", "artifacts_destination", signing=Signing, opening=Opening)
@output_options
def sign(archive: str, key: str, output: str, signing: Signing, opening: Opening) -> None:
    """Sign the root of ARCHIVE, a path or any fsspec URL, in a file beside it.

    The root covers every byte. The archive is only read; others can add their signatures later.
    The passphrase of an encrypted key is asked for, or is in MLFLOW_EXIM_KEY_PASSPHRASE.

    Example:

      mlflow exim sign backup.tar.zst --key alice.pem --role steward --meaning complete
    """
    from mlflow_exim_plugin.operations.proving.sign import sign as run_sign

    result = run_sign(
        archive, key, opening=opening, signing=replace(signing, passphrase=ask_passphrase)
    )
    if output == "json":
        show_json(result.to_dict())
    else:
        say(f"Signed: {result.file}")
        if result.timestamp:
            say(f"Timestamp: {result.timestamp}")
        say(f"Root sha256:{result.root}")


@click.command(cls=Command)
@click.argument("path")
@click.option(
    "--kind",
    type=click.Choice(KEY_KINDS),
    default=KEY_KINDS[0],
    show_default=True,
    help="ed25519, ecdsa over P-256, or rsa of 3072 bits.",
)
@click.option(
    "--encrypt",
    is_flag=True,
    help="Encrypt the private key with a passphrase, which is asked for, or is in "
    "MLFLOW_EXIM_KEY_PASSPHRASE.",
)
@output_options
def keygen(path: str, kind: str, output: str, encrypt: bool) -> None:
    """Make a key that signs archives, in PATH, and one that verifies, in PATH.pub.

    Only you can read PATH. Nothing is overwritten.

    Example:

      mlflow exim keygen alice.pem --encrypt
    """
    from mlflow_exim_plugin.operations.proving.sign import keygen as run_keygen

    result = run_keygen(path, kind=kind, passphrase=_new_passphrase if encrypt else None)
    if output == "json":
        show_json(result.to_dict())
    else:
        say(f"Private key, keep it secret: {result.private}")
        say(f"Public key, give it away: {result.public}")
        say(f"Id {result.key_id}")


def _new_passphrase() -> str:
    return os.environ.get(KEY_PASSPHRASE_VARIABLE) or _asked(confirmation_prompt=True)
