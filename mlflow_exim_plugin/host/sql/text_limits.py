"""What texts the columns of a database can hold, and which may be cut."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

__all__ = ["BYTES_OF_TEXT", "MAY_BE_CUT", "TextLimit", "folded"]

BYTES_OF_TEXT = {"TINYTEXT": 2**8 - 1, "TEXT": 2**16 - 1, "MEDIUMTEXT": 2**24 - 1}
"""What MySQL's types of text hold; unless it is told to be strict, it cuts the rest off."""
MAY_BE_CUT = {
    *("value", "tag_value", "param_value", "description", "status_message"),
    *("dataset_schema", "dataset_profile", "request_preview", "response_preview", "rationale"),
}
"""Columns of texts that stay what they are when their end is missing."""


@dataclass(frozen=True)
class TextLimit:
    """What a column of text can hold.

    Attributes:
        characters: How many characters, 0 for any number.
        bytes: How many bytes of UTF-8, 0 for any number.
        takes_zero: Whether it takes a zero byte.
    """

    characters: int
    bytes: int
    takes_zero: bool

    def problem_of(self, value: str) -> str:
        """Return why it cannot hold a text, empty where it can."""
        if self.characters and len(value) > self.characters:
            return f"holds {self.characters} characters, it has {len(value)}"
        if self.bytes and len(value) > self.bytes // 4 and len(value.encode()) > self.bytes:
            return f"holds {self.bytes} bytes, it has {len(value.encode())}"
        return "" if self.takes_zero or "\0" not in value else "cannot hold a zero byte"

    def cut(self, value: str) -> str:
        """Return as much of a text as it has room for."""
        if self.characters:
            value = value[: self.characters]
        return value.encode()[: self.bytes].decode("utf-8", "ignore") if self.bytes else value


def folded(key: str) -> str:
    """Return a key as a database has it that ignores capitals and accents."""
    plain = unicodedata.normalize("NFD", key.casefold())
    return "".join(c for c in plain if not unicodedata.combining(c)).rstrip(" ")
