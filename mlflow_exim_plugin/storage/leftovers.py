"""Files and folders that are made for a while: gone with their process, or with the next one.

Each is locked by who made it, and no lock outlives its process, however that ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import fcntl
except ImportError:  # Windows deletes nothing that is open, which says the same
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "FOLDER_PREFIX",
    "HALF_FILE",
    "half_name",
    "held",
    "held_on",
    "is_half",
    "is_held",
    "locked",
    "partial_name",
    "partial_of",
    "partial_prefix",
    "remove_held",
    "remove_left",
    "taking_turns",
    "temporary_folder",
    "unheld",
]

_PREFIX = "mlflow-exim-"
_LOCK = ".lock"
_PARTIAL = re.compile(r"\.(.+)\.partial-(?:[0-9a-f]{32}|[0-9a-z_]{8})")
_HALF = re.compile(r"\.exim-[0-9a-f]{16}")
HALF_FILE = "it is half a file of an unpack that was killed; `mlflow exim leftovers` removes it"
"""Why a file with the name of one is not taken."""
FOLDER_PREFIX = ".mlflow-exim-partial-"
"""What a folder begins with where files wait that are extracted."""
_HELD: dict[Path, int] = {}
"""What this process has made and not removed yet, each with the open file that locks it."""
_TURN = threading.Lock()
_TRIES = 100


def partial_prefix(name: str) -> str:
    """Return what names begin with under which a file or folder is written before it has its own.

    A long name is cut: with what is added it must stay below 255 bytes.
    """
    start = os.fsencode(name)[:150].decode(errors="ignore")
    return f".{start}.partial-"


def partial_name(name: str) -> str:
    """Return a name of its own for a file that is written before it has this one."""
    return f"{partial_prefix(name)}{uuid.uuid4().hex}"


def partial_of(partial: str) -> str | None:
    """Return the name that a file or folder was to have which is called so; None if it is no such.

    Of a long name that is its beginning.
    """
    found = _PARTIAL.fullmatch(partial)
    return found[1] if found else None


def half_name(path: str) -> str:
    """Return a short name for a file of a run while it is written beside this path.

    It is always the same, so that another attempt takes away what one has left.
    """
    return f".exim-{hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()[:16]}"


def is_half(name: str) -> bool:
    """Whether a file is called as one that is being written."""
    return name.startswith(".exim-") and _HALF.fullmatch(name) is not None


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a file or folder that is there until it is renamed, or removed at the end."""
    descriptor = _hold_folder(path) if path.is_dir() else _hold_file(path)
    with _TURN:
        _HELD[path] = descriptor
    try:
        yield
    finally:
        with _TURN:
            _HELD.pop(path, None)
        os.close(descriptor)
        _remove(path)


def _hold_folder(path: Path) -> int:
    """Lock a new folder before anybody who looks for what is left can find its lock."""
    begun = path / f"{_LOCK}-{uuid.uuid4().hex}"
    descriptor = os.open(begun, os.O_RDWR | os.O_CREAT, 0o600)
    _lock(descriptor)
    begun.replace(path / _LOCK)
    return descriptor


def _hold_file(path: Path) -> int:
    """Lock a new file; whoever took it for left in the moment before that has removed it."""
    for _ in range(_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if _lock(descriptor) and _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)
        time.sleep(0.001)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)  # this file system knows no locks


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def held_on(path: Path) -> Iterator[None]:
    """Hold a file that may be another's who is no more; after an exception it stays, if it has any.

    Raises:
        BlockingIOError: Somebody has it, or this file system knows no locks.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        if not _lock(descriptor):
            raise BlockingIOError(f"{path} is in use")
        try:
            yield
        except BaseException:
            if os.fstat(descriptor).st_size:
                raise
            _remove(path)
            raise
        _remove(path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, text: str) -> Iterator[None]:
    """Write a small file and lock it; the file stays."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _lock(descriptor)
        os.write(descriptor, text.encode())
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def unheld(path: Path) -> Iterator[str | None]:
    """Read a small file and keep it locked meanwhile; None if another does, or it has gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        yield None
        return
    try:
        yield path.read_text("utf-8") if _lock(descriptor) else None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def taking_turns(path: Path) -> Iterator[None]:
    """Wait until nobody else is in here with the same small file, which is made and stays."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # this file system knows no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder in ``TMPDIR``, after those that killed processes left there are removed."""
    remove_left(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with held(folder):
        yield folder


def is_held(path: Path) -> bool:
    """Whether somebody holds a file or folder; who cannot be asked is taken to."""
    try:
        descriptor = os.open(path / _LOCK if path.is_dir() else path, os.O_RDWR)
    except OSError:
        return path.exists()
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def remove_left(files: Iterable[Path]) -> None:
    """Remove what nobody holds any more.

    Args:
        files: The locked file of each, which for a folder is the one in it.
    """
    for file in files:
        with contextlib.suppress(OSError):  # another is faster, or it is not ours
            descriptor = os.open(file, os.O_RDWR)
            try:
                # What was opened may have gone, and another one may be held under its name.
                if is_left := _lock(descriptor) and _is_at(descriptor, file):
                    _remove_left(file)  # while it is locked: nobody can begin to hold it
            finally:
                os.close(descriptor)
            if is_left and fcntl is None:
                _remove_left(file)  # ... but on Windows, where what is open stays


def _remove_left(file: Path) -> None:
    _remove(file.parent if file.name == _LOCK else file)


def remove_held() -> None:
    """Remove what this process has made, which is about to end in the middle of its work."""
    with _TURN:
        left = list(_HELD)
    for path in left:
        _remove(path)


def _lock(descriptor: int) -> bool:
    """Lock an open file; whether nobody else has."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody has, or this file system knows no locks
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
