"""How an option is declared, once, with what it says of itself, and how functions take it."""

from __future__ import annotations

import functools
import inspect
import warnings
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_exim_plugin.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "AGAIN",
    "Option",
    "asked",
    "at_least_one",
    "flat",
    "flat_fields",
    "for_programs",
    "option_of",
]

_Result = TypeVar("_Result")
_OPTION = "option"
AGAIN = " May be given several times."
"""Ends the help of an option of several values."""


@dataclass(frozen=True)
class Option:
    """How a field is asked for on the command line.

    Attributes:
        help: What it does, for every place that says so.
        flag: Its names there; made from the field's name without them.
        metavar: What stands for its value.
        choices: The values there are, where they are few.
        least: Smallest value of a number.
        most: Largest value of a number, None without an end.
        read: Makes the value of what was typed; raises ``UsageError``.
        old_switch: A switch that once stood for the value it has without it.
        typed: What the command line takes where the field's own default is for programs.
    """

    help: str
    flag: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    read: Callable[[Any], Any] | None = None
    old_switch: str = ""
    typed: Any = None


def asked(help: str, *, default: Any, typed: Any = None, **how: Any) -> Any:  # noqa: A002 - click's word for it
    """Declare an option; further keywords are attributes of :class:`Option`."""
    option = Option(help, typed=typed, **how)
    return field(default=default, metadata={_OPTION: option})


def for_programs(default: Any) -> Any:
    """Declare what no command line asks for and a keyword can give."""
    return field(default=default, metadata={_OPTION: None})


def option_of(of: Field[Any]) -> Option | None:
    """Return how a field is asked for, None where only programs can give it."""
    found: Option | None = of.metadata.get(_OPTION)
    return found


def flat_fields(function: Callable[..., Any]) -> dict[str, tuple[str, Field[Any]]]:
    """Return the parameter and field behind each keyword that stands for an option.

    A group that is taken as ``source_opening`` gives keywords that begin with ``source_``.
    """
    found = {}
    for name, parameter in inspect.signature(function, follow_wrapped=True).parameters.items():
        group = type(parameter.default)
        if is_dataclass(group):
            prefix = name.removesuffix(group.__name__.lower())
            declared = [of for of in fields(group) if _OPTION in of.metadata]
            found.update({prefix + of.name: (name, of) for of in declared})
    return found


def flat(**renamed: str) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Let a function that takes groups of options take each option as a keyword of its own too.

    Args:
        renamed: New name of a keyword by the name that it had once, which still works.
    """

    def decorate(function: Callable[..., _Result]) -> Callable[..., _Result]:
        signature = inspect.signature(function)
        keywords = flat_fields(function)

        @functools.wraps(function)
        def called(*arguments: Any, **given: Any) -> _Result:
            for old in given.keys() & renamed.keys():
                new = renamed[old]
                warnings.warn(f"{old} is called {new}", FutureWarning, stacklevel=2)
                given.setdefault(new, given.pop(old))
            groups: dict[str, dict[str, Any]] = {}
            for keyword in given.keys() & keywords.keys():
                parameter, of = keywords[keyword]
                value = given.pop(keyword)
                one = of.default == () and isinstance(value, str)  # meant, and not its letters
                groups.setdefault(parameter, {})[of.name] = (value,) if one else value
            unknown = given.keys() - signature.parameters.keys()
            if unknown:
                known = ", ".join(sorted({*signature.parameters, *keywords}))
                raise UsageError(f"there is no option {min(unknown)!r}", f"there are {known}")
            for name, said in groups.items():
                default = signature.parameters[name].default
                given[name] = replace(given.get(name) or default, **said)
            return function(*arguments, **{k: v for k, v in given.items() if v is not None})

        return called

    return decorate


def at_least_one(jobs: int) -> None:
    """Refuse to do nothing at once.

    Raises:
        UsageError: It is less than 1.
    """
    if jobs < 1:
        raise UsageError(f"jobs is at least 1, not {jobs}")
