"""The numbered rules of spec/v1: one code for each MUST (E...) and each SHOULD (W...).

Codes are append-only. ``tests/conformance`` holds that every code here has an anchor in
``spec/v1/archive.md``, a row in ``spec/v1/codes.md`` and a sample in ``samples/v1/bad`` or
``samples/v1/warn`` that breaks it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RULES", "Finding", "Rule"]


@dataclass(frozen=True)
class Rule:
    """One requirement of the spec.

    Attributes:
        code: ``E`` or ``W`` and three digits; never reused.
        slug: Short name with underscores, the rest of its sample's folder name.
        sentence: The requirement as the spec words it.
        anchor: Heading anchor in ``spec/v1/archive.md``.
    """

    code: str
    slug: str
    sentence: str
    anchor: str

    @property
    def is_error(self) -> bool:
        """True for a MUST, false for a SHOULD."""
        return self.code.startswith("E")


@dataclass(frozen=True)
class Finding:
    """One place where an archive breaks one rule.

    Attributes:
        code: The rule's code.
        path: Member path, or a structure's name such as ``<footer>``.
        message: What was found there, one line.
    """

    code: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.code} {self.path}: {self.message}"


# Container rules: E001-E049 and W001-W019. Object rules: E050-E099 and W020-W049.
_CONTAINER: tuple[Rule, ...] = ()
_OBJECTS: tuple[Rule, ...] = ()

RULES: dict[str, Rule] = {rule.code: rule for rule in _CONTAINER + _OBJECTS}
