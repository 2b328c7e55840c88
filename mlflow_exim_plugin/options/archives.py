"""How archives are written: by a pack, and anew from another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.options.declared import AGAIN, asked, at_least_one, for_programs
from mlflow_exim_plugin.options.selection import parse_time_ms

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SALT_VARIABLE", "Packing", "Repacking", "TakingOut"]

SALT_VARIABLE = "MLFLOW_EXIM_SALT"
"""Environment variable that may hold the salt of hashes."""


@dataclass(frozen=True, kw_only=True)
class TakingOut:
    """What is taken out on the way."""

    redact: tuple[str, ...] = asked(
        "YAML file of rules for what is dropped, hashed or replaced on the way; or users, "
        f"trace-content, places or secrets: rules that are ready.{AGAIN}",
        default=(),
        metavar="RULES",
    )
    salt_file: str | None = asked(
        "File with the secret that hashes are made with, 16 bytes or more; MLFLOW_EXIM_SALT may "
        "hold it too. The same salt gives the same hashes. It is stored nowhere.",
        default=None,
        metavar="FILE",
    )


@dataclass(frozen=True)
class Packing(TakingOut):
    """How an archive is written.

    Attributes:
        passphrase: Asks for the passphrase of an encrypted key that no variable has.
    """

    level: int = asked("zstd compression level.", default=3, least=1, most=22)
    overwrite: bool = asked("Replace an archive that is there.", default=False)
    resume: bool = asked(
        "Go on where a pack to this name was broken off, and leave what was packed if this one is. "
        "For a store it is kept on this machine too meanwhile.",
        default=False,
    )
    as_of_ms: int | None = asked(
        "Say that it was packed at TIME, ISO 8601 in UTC or ms, so that the same state gives the "
        "same bytes; SOURCE_DATE_EPOCH or now without it.",
        default=None,
        flag="--as-of",
        metavar="TIME",
        read=parse_time_ms,
    )
    export_source_tags: bool = asked(
        "Give packed runs their ids, times, users and mlflow. tags again as tags "
        "mlflow_export_import.*.",
        default=False,
    )
    set: str | None = asked(
        "Path or URL of a set, a folder of archives: only what is new or changed since its newest "
        "snapshot is packed, and the next snapshot says what is there now.",
        default=None,
        metavar="SET",
    )
    recheck: bool = asked(
        "Of a set, read all of the source and compare digests; without it, what a source says of "
        "itself tells what is unchanged: documents, numbers of rows, names, sizes and times.",
        default=False,
    )
    keep_until_ms: int | None = asked(
        "Of a set, keep the snapshot at least until TIME: `forget` leaves it.",
        default=None,
        flag="--keep-until",
        metavar="TIME",
        read=parse_time_ms,
    )
    source_moved: bool = asked(
        "Of a set, say that its source has another address now.", default=False
    )
    sign: str | None = asked(
        "Private key that signs the archive once it is there, as `sign --key` takes it.",
        default=None,
        metavar="KEY",
    )
    passphrase: Callable[[], str] | None = for_programs(None)


@dataclass(frozen=True)
class Repacking:
    """How an archive is compressed anew.

    Attributes:
        progress: Called with the bytes of the archive done and their total.
    """

    level: int = asked("zstd compression level.", default=19, least=1, most=22)
    frame_bytes: int | None = asked(
        "Bytes that a frame holds, up to 4194304: more compress better, fewer are read faster in "
        "place; as a pack has them without it.",
        default=None,
        least=16 << 10,
        most=4 << 20,
    )
    overwrite: bool = asked("Replace an archive that is there.", default=False)
    jobs: int = asked("Threads that compress.", default=4, least=1)
    progress: Callable[[int, int], None] | None = for_programs(None)

    def __post_init__(self) -> None:
        at_least_one(self.jobs)
        if self.frame_bytes is not None and not 16 << 10 <= self.frame_bytes <= 4 << 20:
            raise UsageError(f"a frame holds 16384 to 4194304 bytes, not {self.frame_bytes}")
