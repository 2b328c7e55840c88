"""How an archive is held against the format and against who must have said that it is so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.options.declared import AGAIN, asked, for_programs

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KEY_KINDS", "KEY_PASSPHRASE_VARIABLE", "Checking", "Signing"]

KEY_KINDS = ("ed25519", "ecdsa", "rsa")
"""Kinds of keys that are made: the last two over P-256, and of 3072 bits."""
KEY_PASSPHRASE_VARIABLE = "MLFLOW_EXIM_KEY_PASSPHRASE"  # noqa: S105 - its name
"""Environment variable with the passphrase of an encrypted key."""
_ALL_PERCENT = 100


def _percent(text: str) -> float:
    """Read a share such as 5 or 0.1%."""
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = 0.0
    if not 0 < percent <= _ALL_PERCENT:
        raise UsageError(f"{text!r} is no share of the members", "write 5 or 0.1%")
    return percent


def _root(text: str) -> str:
    return text.strip().removeprefix("sha256:").lower()


@dataclass(frozen=True)
class Checking:
    """How much of an archive is looked at, and who must have said that it is so.

    Attributes:
        progress: Called with the bytes done and their total.
    """

    expected_root: str | None = asked(
        "Root digest that the archive must have; without it authenticity is not checked.",
        default=None,
        flag="--root",
        metavar="HEX",
    )
    quick: bool = asked(
        "Look only at the end of the archive: index, manifests and root; seconds, whatever its "
        "size.",
        default=False,
    )
    sample: float | None = asked(
        "Look at the end and, by digest, at so many of a hundred members, chosen by chance.",
        default=None,
        metavar="PERCENT",
        read=_percent,
    )
    keys: tuple[str, ...] = asked(
        "Public key that must have signed the archive: a PEM file, env:NAME of a variable that "
        f"holds one, or a key in securesystemslib's JSON.{AGAIN}",
        default=(),
        flag="--key",
        metavar="KEY",
    )
    require: int | None = asked(
        "How many of the keys must have signed; all without it.", default=None, least=1
    )
    signatures: tuple[str, ...] = asked(
        f"Signature file; those beside the archive without it.{AGAIN}",
        default=(),
        flag="--signature",
        metavar="FILE",
    )
    authority: str | None = asked(
        "Certificates (PEM) of a time-stamping authority: then only signatures count that have its "
        "timestamp beside them, as sign --timestamp puts it there.",
        default=None,
        flag="--timestamp-authority",
        metavar="FILE",
    )
    seed: str | None = asked(
        "What chooses the members of --sample: the same chooses the same ones again.",
        default=None,
        metavar="TEXT",
    )
    jobs: int = asked("Threads that decompress.", default=4, least=1)
    progress: Callable[[int, int], None] | None = for_programs(None)

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UsageError(f"jobs is at least 1, not {self.jobs}")
        if self.expected_root is not None:
            object.__setattr__(self, "expected_root", _root(self.expected_root))
        if self.quick and self.sample is not None:
            raise UsageError("quick looks at no member, a sample at some", "give one of them")
        if self.sample is not None and not 0 < self.sample <= _ALL_PERCENT:
            raise UsageError(f"a sample of {self.sample} percent", "give more than 0, at most 100")
        if self.seed is not None and self.sample is None:
            raise UsageError("a seed chooses a sample, and none is asked for", "add --sample")
        if not self.keys and (self.require or self.signatures or self.authority):
            raise UsageError("signatures are held against keys, and there is none", "add --key")

    @property
    def level(self) -> str:
        """How far it goes, in a word."""
        return "quick" if self.quick else "full" if self.sample is None else "sample"


@dataclass(frozen=True)
class Signing:
    """What is said of an archive, by whom.

    Attributes:
        passphrase: Asks for the passphrase of an encrypted key that no variable has.
    """

    public_key: str | None = asked(
        "Public key of a key that another machine or program holds.", default=None, metavar="KEY"
    )
    signer: str | None = asked(
        "Who signs; the user of this system without it.", default=None, metavar="TEXT"
    )
    role: str | None = asked("As what, such as 'data steward'.", default=None, metavar="TEXT")
    meaning: str | None = asked(
        "What is said by it, such as 'approved for release'.", default=None, metavar="TEXT"
    )
    expected_root: str | None = asked(
        "Root digest that the archive must have to be signed.",
        default=None,
        flag="--root",
        metavar="HEX",
    )
    signature: str | None = asked(
        "File for the signature; beside the archive, named for the key, without it.",
        default=None,
        metavar="FILE",
    )
    timestamp: str | None = asked(
        "Time-stamping authority (RFC 3161) that says when it was signed; its answer lies beside "
        "the signature as .tsr, for `openssl ts -verify`.",
        default=None,
        metavar="URL",
    )
    overwrite: bool = asked("Replace a signature that is there.", default=False)
    passphrase: Callable[[], str] | None = for_programs(None)

    def __post_init__(self) -> None:
        if self.expected_root is not None:
            object.__setattr__(self, "expected_root", _root(self.expected_root))
