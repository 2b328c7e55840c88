"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlflow_exim_plugin.errors import EximError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.stages.select import Selection

__all__ = [
    "archive_argument",
    "naming_from",
    "output_options",
    "reading_options",
    "selection_from",
    "selection_options",
    "server_options",
    "verbose_option",
    "work_options",
    "writing_options",
]

_Command = TypeVar("_Command", bound="Callable[..., Any]")

_SELECTION = (
    click.option(
        "-e",
        "--experiment",
        "experiments",
        multiple=True,
        metavar="NAME",
        help="Experiment to take, by name, id or glob. May be given several times.",
    ),
    click.option(
        "-r",
        "--run-id",
        "runs",
        multiple=True,
        metavar="ID",
        help="Run to take with its ancestors, by id or glob. May be given several times.",
    ),
    click.option(
        "-m",
        "--model",
        "models",
        multiple=True,
        metavar="NAME",
        help="Registered model or prompt to take with all versions and their runs, by name or "
        "glob. May be given several times.",
    ),
    click.option(
        "--filter",
        "filter_string",
        default="",
        metavar="EXPRESSION",
        help="Take only runs that match, in MLflow's search language.",
    ),
    click.option(
        "--since",
        metavar="TIME",
        help="Take only runs that started at this time (UTC) or later, such as 2026-01-31.",
    ),
    click.option(
        "--until",
        metavar="TIME",
        help="Take only runs that started at this time (UTC) or earlier; a date means its end.",
    ),
    click.option(
        "--deleted/--no-deleted",
        default=True,
        show_default=True,
        help="Take deleted experiments and runs too.",
    ),
    click.option("--traces/--no-traces", default=True, show_default=True, help="Take traces."),
    click.option(
        "--artifacts/--no-artifacts", default=True, show_default=True, help="Take artifacts."
    ),
    click.option(
        "--include",
        multiple=True,
        metavar="GLOB",
        help="Take only artifacts whose path matches. May be given several times.",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="GLOB",
        help="Leave out artifacts whose path matches. May be given several times.",
    ),
)

_SERVER = (
    click.option(
        "--tracking-uri",
        metavar="URI",
        help="MLflow tracking URI; MLFLOW_TRACKING_URI or MLflow's own default without it.",
    ),
    click.option(
        "--registry-uri",
        metavar="URI",
        help="MLflow registry URI; MLFLOW_REGISTRY_URI or the tracking URI without it.",
    ),
)

_WORK = (
    click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=4,
        show_default=True,
        help="How much may be under way at once.",
    ),
    click.option(
        "--dry-run", is_flag=True, help="Look at everything, write nothing, and say what would be."
    ),
    click.option("--strict", is_flag=True, help="Stop at the first object that fails."),
)

_DESTINATION = (
    "Where the server of a database keeps the files of mlflow-artifacts:, as its own option of "
    "this name says."
)

_FILES = (click.option("--artifacts-destination", metavar="URI", help=_DESTINATION),)

_READING = (
    click.option(
        "--force",
        is_flag=True,
        help="Read a database whose schema is newer than this MLflow's as far as it is known, and "
        "name what is left out.",
    ),
)

_WRITING = (
    click.option(
        "--experiment-name", metavar="NAME", help="Put all runs into one experiment of this name."
    ),
    click.option(
        "--rename",
        "rename_file",
        metavar="FILE",
        help='JSON file of new names: {"experiments": {"old": "new"}, "models": {"old": "new"}}.',
    ),
    click.option(
        "--on-conflict",
        type=click.Choice(["merge", "skip", "rename", "fail"]),
        default="merge",
        show_default=True,
        help="What to do when the target has something else under the same name.",
    ),
    click.option(
        "--user",
        type=click.Choice(["source", "importer"]),
        default="source",
        show_default=True,
        help="Keep the users of the runs, or make them yours.",
    ),
    click.option("--use-src-user-id", is_flag=True, help="The old name of --user source."),
    click.option(
        "--import-source-tags",
        is_flag=True,
        help="Keep ids, times, users and other fields that the target sets anew as tags "
        "mlflow_exim.*.",
    ),
    click.option(
        "--artifact-location",
        metavar="URI",
        help="Artifact root for new experiments; the target's own without it. For a database "
        "'source' leaves all files where the source has them.",
    ),
    click.option(
        "--preserve-ids/--new-ids",
        "preserve_ids",
        default=None,
        help="Keep ids and times, which needs a database as target and is the default there, or "
        "let MLflow's API make new ones.",
    ),
    click.option("--artifacts-destination", metavar="URI", help=_DESTINATION),
)

_OUTPUT = (
    click.option(
        "--output",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        is_eager=True,  # what is wrong with other arguments is said in this format
        help="Format of the result on standard output.",
    ),
)

_VERBOSE = (
    click.option(
        "--verbose",
        is_flag=True,
        help="Log what is done, and show the tracebacks of errors.",
    ),
)


def _apply(command: _Command, options: tuple[Callable[[Any], Any], ...]) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def archive_argument(command: _Command) -> _Command:
    """Add the argument that says where the archive is."""
    return click.argument("archive", callback=_archive_location)(command)


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


def selection_options(command: _Command) -> _Command:
    """Add the options that say what to take."""
    return _apply(command, _SELECTION)


def reading_options(command: _Command) -> _Command:
    """Add the options that say how a deployment is read."""
    return _apply(command, _READING)


def files_options(command: _Command) -> _Command:
    """Add the option that says where the files of a database are."""
    return _apply(command, _FILES)


def server_options(command: _Command) -> _Command:
    """Add the options that name a server."""
    return _apply(command, _SERVER)


def work_options(command: _Command) -> _Command:
    """Add the options that say how much is done at once, and whether at all."""
    return _apply(command, _WORK)


def writing_options(command: _Command) -> _Command:
    """Add the options that say how objects are put onto a server."""
    return _apply(command, _WRITING)


def output_options(command: _Command) -> _Command:
    """Add the options that say how results are shown; ``Command`` sees to ``--verbose`` itself."""
    return _apply(command, (*_OUTPUT, *_VERBOSE))


def verbose_option(command: _Command) -> _Command:
    """Add ``--verbose`` to a command that has one format only."""
    return _apply(command, _VERBOSE)


def selection_from(options: dict[str, Any]) -> Selection:
    """Take the options of ``selection_options`` out of a command's options.

    Raises:
        UsageError: A time cannot be read.
    """
    from mlflow_exim_plugin.stages.select import Selection, parse_time_ms

    since, until = options.pop("since"), options.pop("until")
    return Selection(
        experiments=options.pop("experiments"),
        runs=options.pop("runs"),
        models=options.pop("models"),
        filter=options.pop("filter_string"),
        since_ms=parse_time_ms(since) if since else None,
        until_ms=parse_time_ms(until, end=True) if until else None,
        deleted=options.pop("deleted"),
        traces=options.pop("traces"),
        artifacts=options.pop("artifacts"),
        include=options.pop("include"),
        exclude=options.pop("exclude"),
    )


def naming_from(options: dict[str, Any]) -> dict[str, Any]:
    """Take those of ``writing_options`` that set names and users out of a command's options.

    Returns:
        The arguments ``experiment_name``, ``rename`` and ``importer`` of ``unpack`` and ``copy``.

    Raises:
        UsageError: Two of them exclude each other, or the file cannot be read.
    """
    from mlflow_exim_plugin.stages.rename import Rename

    experiment_name, rename_file = options.pop("experiment_name"), options.pop("rename_file")
    user = options.pop("user")
    if options.pop("use_src_user_id") and user == "importer":
        raise UsageError("--use-src-user-id and --user importer exclude each other")
    if experiment_name and rename_file:
        raise UsageError("--experiment-name and --rename exclude each other")
    return {
        "experiment_name": experiment_name,
        "rename": Rename.from_file(rename_file) if rename_file else None,
        "importer": _own_name() if user == "importer" else None,
    }


def _own_name() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user may have no name
        raise EximError("the system does not tell who you are", "set LOGNAME") from None
