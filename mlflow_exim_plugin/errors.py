"""The one tree of errors: a code for programs, an exit code for scripts, a hint for people.

::

    EximError
    |- UsageError                 the call contradicts itself                       exit 2
    |- PartialTransferError       done, but named objects failed (.report)          exit 3
    |- NotFoundError              archive, member, experiment, run or model         exit 4
    |- InvalidArchiveError        the archive breaks the format (.findings)         exit 5
    |  |- TruncatedArchiveError   its end is missing
    |  |- DigestMismatchError     bytes differ from the manifest
    |  '- UnsafePathError         a member name that could escape or collide
    |- SignatureError             a signature is not what it should be (.findings)  exit 6
    |- UnsupportedFormatError     newer major version or unknown required feature   exit 7
    |- ConflictError              the target has it and the policy is ``fail``      exit 8
    |  '- ArchiveExistsError      the output is there and overwriting was not asked
    |- ServerError                a tracking server or registry refused             exit 9
    |- ServerLostError            it does not answer at all: going on is no use     exit 9
    |- StoreError                 a file system or object store refused or died     exit 9
    |  '- ReplacedError           what was read is no more what is at its name
    |- EngineError                what runs tasks refused, or lost one              exit 9
    '- MissingDependencyError     an optional package is needed                     exit 1

Codes are append-only: a released code never changes its meaning.
"""

from __future__ import annotations

import difflib
import logging
from enum import Enum, IntEnum
from itertools import islice
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "NOTICE",
    "ArchiveExistsError",
    "ConflictError",
    "DigestMismatchError",
    "EngineError",
    "ErrorCode",
    "EximError",
    "ExitCode",
    "InvalidArchiveError",
    "MissingDependencyError",
    "NotFoundError",
    "PartialTransferError",
    "ReplacedError",
    "ServerError",
    "ServerLostError",
    "SignatureError",
    "StoreError",
    "TruncatedArchiveError",
    "UnsafePathError",
    "UnsupportedFormatError",
    "UsageError",
]


_LOOKED_AT = 10_000
"""Names that one is compared with before an error names those that are like it."""

NOTICE = logging.CRITICAL + 10
"""Level of the log for what a person is told at once, such as that a server is waited for."""


class ExitCode(IntEnum):
    """What the process returns to the shell."""

    DONE = 0
    OTHER = 1
    USAGE = 2
    PARTIAL = 3
    NOT_FOUND = 4
    INVALID_ARCHIVE = 5
    SIGNATURE = 6
    UNSUPPORTED_FORMAT = 7
    CONFLICT = 8
    SERVER = 9


class ErrorCode(str, Enum):
    """Stable name of an error's kind, as JSON output shows it."""

    OTHER = "other"
    USAGE = "usage"
    PARTIAL = "partial"
    NOT_FOUND = "not_found"
    INVALID_ARCHIVE = "invalid_archive"
    TRUNCATED_ARCHIVE = "truncated_archive"
    DIGEST_MISMATCH = "digest_mismatch"
    UNSAFE_PATH = "unsafe_path"
    SIGNATURE = "signature"
    UNSUPPORTED_FORMAT = "unsupported_format"
    CONFLICT = "conflict"
    ARCHIVE_EXISTS = "archive_exists"
    SERVER = "server"
    SERVER_LOST = "server_lost"
    STORE = "store"
    REPLACED = "replaced"
    MISSING_DEPENDENCY = "missing_dependency"
    ENGINE = "engine"


class EximError(Exception):
    """Base of every error that crosses the package's public surface.

    Args:
        message: One line that says what went wrong; what is secret in it is taken out.
        hint: What the user can do about it; may be empty.

    Attributes:
        code: Stable name of the kind of error.
        exit_code: What the command line returns for it.
        hint: What the user can do about it.
    """

    code: ErrorCode = ErrorCode.OTHER
    exit_code: ExitCode = ExitCode.OTHER

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(redact(message))
        self.hint = redact(hint)

    @property
    def message(self) -> str:
        """The one line that says what went wrong."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint), self.__dict__


class UsageError(EximError):
    """The call contradicts itself or names something that cannot be."""

    code = ErrorCode.USAGE
    exit_code = ExitCode.USAGE


class PartialTransferError(EximError):
    """The transfer went through, but named objects failed; only with ``strict``.

    Attributes:
        report: The transfer's report.
    """

    code = ErrorCode.PARTIAL
    exit_code = ExitCode.PARTIAL
    report: Any = None


class NotFoundError(EximError, FileNotFoundError):
    """An archive, member or MLflow object that is not there."""

    code = ErrorCode.NOT_FOUND
    exit_code = ExitCode.NOT_FOUND

    @classmethod
    def among(cls, what: str, wanted: str, known: Iterable[str]) -> NotFoundError:
        """Return one that names what is called much like it.

        Args:
            what: What there is not, such as ``the archive has no run``.
            wanted: How it was called.
            known: What there is.
        """
        near = difflib.get_close_matches(wanted, list(islice(known, _LOOKED_AT)), n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
        return cls(f"{what} {wanted!r}", hint)


class InvalidArchiveError(EximError, ValueError):
    """The archive breaks the format; ``findings`` numbers how.

    Attributes:
        findings: The spec's codes with their places, at least one.
    """

    code = ErrorCode.INVALID_ARCHIVE
    exit_code = ExitCode.INVALID_ARCHIVE

    def __init__(self, message: str, hint: str = "", findings: Sequence[Any] = ()) -> None:
        super().__init__(message, hint)
        self.findings = tuple(findings)


class TruncatedArchiveError(InvalidArchiveError):
    """The archive's end is missing: it was cut off, or something was appended."""

    code = ErrorCode.TRUNCATED_ARCHIVE


class DigestMismatchError(InvalidArchiveError):
    """Bytes differ from what the manifest says."""

    code = ErrorCode.DIGEST_MISMATCH


class UnsafePathError(InvalidArchiveError):
    """A member name that could escape the target folder or collide with another."""

    code = ErrorCode.UNSAFE_PATH


class SignatureError(EximError):
    """A signature is not what it should be, or whoever is asked for one refuses.

    Attributes:
        findings: The codes of spec/v1/signing.md with their places; none where no file is at fault.
    """

    code = ErrorCode.SIGNATURE
    exit_code = ExitCode.SIGNATURE

    def __init__(self, message: str, hint: str = "", findings: Sequence[Any] = ()) -> None:
        super().__init__(message, hint)
        self.findings = tuple(findings)


class UnsupportedFormatError(EximError):
    """Written by a newer format: another major version or an unknown required feature.

    Attributes:
        findings: The spec's codes of an archive that asks for a newer reader; none for a database.
    """

    code = ErrorCode.UNSUPPORTED_FORMAT
    exit_code = ExitCode.UNSUPPORTED_FORMAT

    def __init__(self, message: str, hint: str = "", findings: Sequence[Any] = ()) -> None:
        super().__init__(message, hint)
        self.findings = tuple(findings)


class ConflictError(EximError):
    """The target has a namesake under the same name and the policy is ``fail``."""

    code = ErrorCode.CONFLICT
    exit_code = ExitCode.CONFLICT


class ArchiveExistsError(ConflictError, FileExistsError):
    """The output file is there already and overwriting was not asked for."""

    code = ErrorCode.ARCHIVE_EXISTS


class ServerError(EximError):
    """A tracking server or model registry refused, answered nonsense or died."""

    code = ErrorCode.SERVER
    exit_code = ExitCode.SERVER


class ServerLostError(EximError):
    """The server does not answer at all: going on with the next object would not help.

    It is no ``ServerError``: what goes on after one refused object must not go on after this.
    """

    code = ErrorCode.SERVER_LOST
    exit_code = ExitCode.SERVER


class StoreError(EximError, OSError):
    """A file system or object store refused or died."""

    code = ErrorCode.STORE
    exit_code = ExitCode.SERVER

    def __str__(self) -> str:
        return self.message


class ReplacedError(StoreError):
    """What is at the name is not the file any more that was opened there."""

    code = ErrorCode.REPLACED


class EngineError(EximError):
    """What runs tasks cannot be reached, or lost one."""

    code = ErrorCode.ENGINE
    exit_code = ExitCode.SERVER


class MissingDependencyError(EximError, ImportError):
    """An optional package is needed; the hint names the extra to install."""

    code = ErrorCode.MISSING_DEPENDENCY

    def __str__(self) -> str:
        return self.message
