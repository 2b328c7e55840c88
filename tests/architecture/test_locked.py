"""What CI installs is in its list, with digests; one that is behind would let others in."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKED = (ROOT / ".ci" / "requirements.txt").read_text("utf-8")
EXTRAS = ("", "test", "dev", "docs")
OURS = "mlflow-exim-plugin"
HINT = "run nox -s lock"


def locked() -> dict[str, set[str]]:
    """Return the versions of each package; each line of one is followed by its digests."""
    versions: dict[str, set[str]] = {}
    for name, version, rest in re.findall(
        r"^(\S+?)(?:\[\S*\])?==(\S+)(.*\n(?:    .*\n)*)", LOCKED, re.MULTILINE
    ):
        assert "--hash=sha256:" in rest, name
        versions.setdefault(canonicalize_name(name), set()).add(version)
    return versions


def test_what_is_asked_for_is_locked() -> None:
    versions = locked()
    for text in requires(OURS) or ():
        asked = Requirement(text)
        name = canonicalize_name(asked.name)
        is_installed = asked.marker is None or any(
            asked.marker.evaluate({"extra": extra}) for extra in EXTRAS
        )
        if is_installed and name != OURS:
            there = versions.get(name, set())
            assert there, f"{name}: {HINT}"
            assert all(map(asked.specifier.contains, there)), f"{name} {there}: {HINT}"


def test_nothing_comes_from_elsewhere_or_without_a_digest() -> None:
    lines = [line for line in LOCKED.splitlines() if line and not line.startswith((" ", "#"))]
    assert all(re.match(r"\S+==\S+", line) for line in lines)
    assert len(lines) == sum(map(len, locked().values()))
