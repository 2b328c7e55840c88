"""The options of commands, made from the groups of ``mlflow_exim_plugin.options``."""

from __future__ import annotations

import difflib
import functools
import json
import os
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.operations.live.cache import CACHE_VARIABLE
from mlflow_exim_plugin.options import KEY_PASSPHRASE_VARIABLE, SALT_VARIABLE, Option, option_of
from mlflow_exim_plugin.schema.rules import LIMITS_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import Field

__all__ = [
    "archive_argument",
    "archives_argument",
    "asks",
    "optional_archive_argument",
    "output_options",
    "output_options_and",
    "refuse_unknown",
    "verbose_option",
]

_Command = TypeVar("_Command", bound="Callable[..., Any]")


_QUIET = click.option(
    "-q", "--quiet", is_flag=True, help="Show no progress, and of a report only what failed."
)
_VERBOSE = click.option(
    "--verbose",
    is_flag=True,
    help="Log each object with its time; show the tracebacks of errors.",
)
_LOG_JSON = click.option(
    "--log-json",
    is_flag=True,
    help="Log what --verbose logs, and errors, as JSON: an object a line on standard error.",
)


def archive_argument(command: _Command) -> _Command:
    """Add the argument that says where the archive is."""
    return click.argument("archive", callback=_archive_location)(command)


def optional_archive_argument(command: _Command) -> _Command:
    """Add the argument that says where the archive is, where there may be something else for it."""

    def checked(ctx: click.Context, param: click.Parameter, given: str | None) -> str | None:
        return None if given is None else _archive_location(ctx, param, given)

    argument = click.argument("archive", metavar="[ARCHIVE]", required=False, callback=checked)
    return argument(command)


def archives_argument(command: _Command) -> _Command:
    """Add the argument that says where one archive is or several are."""
    locations = click.argument(
        "archives",
        metavar="ARCHIVE...",
        nargs=-1,
        required=True,
        callback=lambda ctx, param, given: tuple(_archive_location(ctx, param, g) for g in given),
    )
    return locations(command)


def _archive_location(ctx: click.Context, param: click.Parameter, location: str) -> str:
    """Refuse what cannot mean what the user wants."""
    if not location:
        raise click.BadParameter("the name is empty.", ctx, param)
    if location == "-":
        raise click.BadParameter(
            "no archive goes through a pipe; a file of that name is ./-", ctx, param
        )
    if location.startswith("memory://"):
        raise click.BadParameter("what is in memory:// ends with this command.", ctx, param)
    return location


def output_options(command: _Command) -> _Command:
    """Add the options that say how results are shown; ``Command`` sees to the log itself."""
    return output_options_and()(command)


def output_options_and(*more: str) -> Callable[[_Command], _Command]:
    """Return what adds them with further formats."""
    output = click.option(
        "--output",
        type=click.Choice(["text", "json", *more]),
        default="text",
        show_default=True,
        is_eager=True,  # what is wrong with other arguments is said in this format
        help="Format of the result on standard output.",
    )
    return lambda command: output(_QUIET(verbose_option(command)))


def verbose_option(command: _Command) -> _Command:
    """Add ``--verbose`` and ``--log-json`` to a command that has one format only."""
    return _VERBOSE(_LOG_JSON(command))


class _ListOption(click.Option):
    """An option of several values: from the environment as a JSON list, or one a line."""

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """Return the values that the environment gives, None without any."""
        text = self.resolve_envvar_value(ctx)
        if text is None:
            return None
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if not isinstance(values, list):
            return tuple(line for line in text.splitlines() if line.strip())
        if not all(isinstance(value, str) for value in values):
            raise click.BadParameter("the JSON list in the environment holds more than texts.", ctx)
        return tuple(values)


def refuse_unknown(exim: click.Context) -> None:
    """Refuse what the environment says to no option: it would be left unheard.

    Args:
        exim: Of the group of commands.

    Raises:
        click.UsageError: A variable begins as ours do, and no option of a command is called so.
    """
    prefix = f"{exim.auto_envvar_prefix}_"
    given = sorted(name for name in os.environ if name.startswith(prefix))
    if not given or not isinstance(exim.command, click.Group):
        return
    known = {CACHE_VARIABLE, KEY_PASSPHRASE_VARIABLE, LIMITS_VARIABLE, SALT_VARIABLE}
    for name in exim.command.list_commands(exim):
        command = exim.command.get_command(exim, name)
        options = command.params if command else []
        known |= {
            f"{prefix}{name}_{option.name}".upper()
            for option in options
            if isinstance(option, click.Option) and option.allow_from_autoenv
        }
    for variable in given:
        if variable not in known:
            near = difflib.get_close_matches(variable, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"No option is set by {variable}.{hint}")


def asks(*leave_out: str, **groups: type) -> Callable[[_Command], Callable[..., Any]]:
    """Add the options of some groups; the command gets each group as an argument.

    Args:
        leave_out: Keywords that the command does not ask for.
        groups: Class of the group by the argument's name. The options of ``source_opening`` begin
            with ``--source-``.
    """
    asked = [
        (argument, of, option, prefix)
        for argument, group in groups.items()
        for prefix in [argument.removesuffix(group.__name__.lower())]
        for of in fields(group)
        if (option := option_of(of)) is not None and prefix + of.name not in leave_out
    ]

    def decorate(command: _Command) -> Callable[..., Any]:
        @functools.wraps(command)
        def called(*arguments: Any, **given: Any) -> Any:
            values: dict[str, dict[str, Any]] = {argument: {} for argument in groups}
            for argument, of, option, prefix in asked:
                value = given.pop(_parameter(of, option, prefix))
                is_old = option.old_switch and given.pop(_name(option.old_switch))
                if is_old and value != option.typed:
                    raise UsageError(
                        f"{option.old_switch} and {_long(of, option)} {value} exclude each other"
                    )
                if option.read is not None and value not in (None, ()):
                    value = option.read(value)
                if value != ():
                    values[argument][of.name] = value
            made = {argument: groups[argument](**values[argument]) for argument in groups}
            return command(*arguments, **made, **given)

        for _, of, option, prefix in reversed(asked):
            if option.old_switch:
                what = f"The old name of {_long(of, option)} {option.typed}."
                called = click.option(option.old_switch, is_flag=True, help=what)(called)
            called = _click_option(of, option, prefix)(called)
        return called

    return decorate


def _parameter(of: Field[Any], option: Option, prefix: str) -> str:
    """Return what click calls an option, and environment variables after it: its long name."""
    return prefix + _name(_long(of, option))


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _long(of: Field[Any], option: Option) -> str:
    flags = [flag for flag in option.flag.split("/") if flag.startswith("--")]
    return flags[0] if flags else "--" + of.name.replace("_", "-")


def _click_option(of: Field[Any], option: Option, prefix: str) -> Callable[[Any], Any]:
    long = _long(of, option).replace("--", "--" + prefix.replace("_", "-"), 1)
    short = [flag for flag in option.flag.split("/") if flag and not flag.startswith("--")]
    of_end = f"For {prefix[:-1].upper()}: " if prefix else ""
    how: dict[str, Any] = {"help": of_end + option.help, "metavar": option.metavar or None}
    default = of.default if option.typed is None else option.typed
    is_switch = of.default is True or option.flag.count("--") > 1
    if is_switch:
        off = option.flag.partition("/")[2] or long.replace("--", "--no-", 1)
        how |= {"default": default, "show_default": default is not None}
        return click.option(f"{long}/{off}", _parameter(of, option, prefix), **how)
    if default is False:
        how["is_flag"] = True
    elif default == () or "=" in option.metavar:
        how |= {"multiple": True, "cls": _ListOption}
    elif option.choices:
        how |= {
            "type": click.Choice(option.choices),
            "default": str(getattr(default, "value", default)),
        }
        how["show_default"] = True
    elif option.least is not None:
        how |= {"type": click.IntRange(option.least, option.most), "default": default}
        how["show_default"] = True
    elif default is not MISSING:
        how["default"] = default
    return click.option(*short, long, _parameter(of, option, prefix), **how)
