"""Names of files that are no UTF-8 (spec, "Artifacts")."""

from __future__ import annotations

import os

__all__ = ["escaped", "shown"]


def escaped(name: str) -> str:
    """Return a name as text: bytes that are no UTF-8 become ``!XX``, and then ``!`` does too."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "".join(
            f"!{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else "!21" if c == "!" else c
            for c in name
        )
    return name


def shown(name: str) -> str:
    """Return such a name as it is told to people."""
    return os.fsencode(name).decode(errors="backslashreplace")
