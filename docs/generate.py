"""Writes what is made of the code: pages and parts of pages, plots, and types of public names.

python docs/generate.py           rewrite what is generated
python docs/generate.py --check   fail when something is not current

``docs/record.py`` makes the picture of a terminal; that takes servers and is done by hand.
"""

from __future__ import annotations

import enum
import inspect
import re
import sys
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent)]  # a script is found in its own folder

import mlflow_exim_plugin as package  # noqa: E402
from docs import plots, stub  # noqa: E402
from mlflow_exim_plugin import errors  # noqa: E402
from mlflow_exim_plugin.cli.main import exim  # noqa: E402
from mlflow_exim_plugin.comparison.rules import MOVED_RULES, rules_table  # noqa: E402
from mlflow_exim_plugin.kinds import ENTITY_KINDS  # noqa: E402
from mlflow_exim_plugin.options import flat_fields, option_of  # noqa: E402
from mlflow_exim_plugin.schema.rules import RULES  # noqa: E402
from mlflow_exim_plugin.sets.catalogue.tables import TABLES  # noqa: E402

_CLI = """\
# Command line

<!-- Made by docs/generate.py from the code; do not edit. -->

`mlflow exim`, `mlflow-exim` and `python -m mlflow_exim_plugin` are the same command. Every option
can also come from the environment: `MLFLOW_EXIM_PACK_JOBS=8` is `pack --jobs 8`. What may be given
several times is a JSON list there, or one a line; a variable that sets no option is refused. Data
goes to standard output, logs and progress to standard error. Exit codes are under
[Troubleshooting](../troubleshooting.md#exit-codes).
"""
_PYTHON = """\
# Python

<!-- Made by docs/generate.py from the code; do not edit. -->

All of these are in `mlflow_exim_plugin`. Importing it is quick: MLflow is imported when it is first
needed.

```python
from mlflow_exim_plugin import open_archive, pack, verify

report = pack("backup.tar.zst", tracking_uri="sqlite:///mlflow.db", experiments=("churn",), jobs=8)
print(report.ok, report.metric_rows)
print(verify("backup.tar.zst").ok)
with open_archive("backup.tar.zst") as archive:
    print([run.mlflow.run["info"]["run_id"] for run in archive.runs()])
```

Options come in groups, such as `Selection` and `Work`. A function takes a whole group, or the
options of it as keywords, as above. Where the command line takes text, Python takes values:
`since_ms` is a number of milliseconds since the Unix epoch, `rename` is a `Rename`, `importer` is
the name of a user."""
_ERRORS = """\
## Errors

All are in `mlflow_exim_plugin.errors`. Each has `code`, `exit_code`, `message` and `hint`. No other
exception crosses the public surface.
"""
_WIDTH = 96
_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")


# The command line.


def commands() -> dict[str, click.Command]:
    """Return every command by its name, subcommands of groups as ``group command``."""
    return dict(_commands_of(exim, ""))


def _commands_of(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None  # noqa: S101 - it was listed
        yield prefix + name, command
        if isinstance(command, click.Group):
            yield from _commands_of(command, f"{prefix}{name} ")


def help_text(name: str, command: click.Command) -> str:
    """Return what ``mlflow exim NAME --help`` prints."""
    parent = click.Context(
        exim, info_name="mlflow exim", terminal_width=_WIDTH, max_content_width=_WIDTH
    )
    return command.get_help(
        click.Context(command, info_name=name, parent=parent, help_option_names=["-h", "--help"])
    )


def cli_page() -> str:
    """Return reference/cli.md."""
    lines = [_CLI, "| command | does |", "|---|---|"]
    for name, command in commands().items():
        anchor = name.replace(" ", "-")
        lines.append(f"| [{name}](#{anchor}) | {_first_sentence(command.help or '')} |")
    for name, command in commands().items():
        lines += ["", f"## {name}", "", "```text", help_text(name, command), "```"]
    return "\n".join(lines) + "\n"


# Python.


def python_page() -> str:
    """Return reference/python.md."""
    public = {name: getattr(package, name) for name in vars(package)["__all__"] if name[0] != "_"}
    functions = [name for name, thing in public.items() if not inspect.isclass(thing)]
    classes = [name for name, thing in public.items() if inspect.isclass(thing)]
    lines = [_PYTHON]
    for title, names in (("Functions", functions), ("Classes", classes)):
        lines += ["", f"## {title}"]
        for name in sorted(names):
            lines += ["", f"### {name}", "", *_described(name, public[name])]
    lines += ["", _ERRORS, "```text", _tree(), "```"]
    for error in error_classes():
        lines += ["", f"### {error.__name__}", "", *_docstring(error)]
    return "\n".join(lines) + "\n"


def _tree() -> str:
    """Return the tree that the docstring of the errors draws."""
    return dedent((errors.__doc__ or "").partition("::\n\n")[2].rpartition("\n\n")[0])


def error_classes(
    root: type[errors.EximError] = errors.EximError,
) -> Iterator[type[errors.EximError]]:
    """Yield the errors, each before those that are kinds of it, as the tree has them."""
    yield root
    for child in vars(errors).values():
        if isinstance(child, type) and root in child.__bases__:
            yield from error_classes(child)


def _described(name: str, thing: object) -> Iterator[str]:
    yield from ("```python", _signature(name, thing), "```", "", *_docstring(thing))
    if not inspect.isclass(thing):
        yield from _keywords(thing)  # type: ignore[arg-type]
        return
    if issubclass(thing, enum.Enum):
        yield from ("", f"Values: {', '.join(f'`{member.value}`' for member in thing)}.")
        return
    if is_dataclass(thing):
        yield from _options(thing)
    for member, value in vars(thing).items():
        inner = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if member[0] == "_" or not inspect.getdoc(inner):
            continue
        if inspect.isfunction(inner):
            yield from ("", f"#### {name}.{member}", "", "```python")
            yield from (_signature(f"{name}.{member}", getattr(thing, member)), "```", "")
            yield from _docstring(inner)
        elif isinstance(inner, property) or hasattr(inner, "func"):  # a cached property
            yield from ("", f"#### {name}.{member}", "", *_docstring(inner))


def _signature(name: str, thing: object) -> str:
    """Return how a thing is called, on one line where it fits."""
    if inspect.isclass(thing) and issubclass(thing, enum.Enum):
        return f"{name}(value)"
    signature = inspect.signature(thing)  # type: ignore[arg-type]
    texts, is_keyword = [], False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not is_keyword:
            texts.append("*")
        is_keyword = parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        texts.append(_parameter(parameter))
    ends = signature.return_annotation
    returns = "" if ends is signature.empty else f" -> {_annotation(ends)}"
    short = f"{name}({', '.join(texts)}){returns}"
    if len(short) <= _WIDTH:
        return short
    return f"{name}(\n" + "".join(f"    {text},\n" for text in texts) + f"){returns}"


def _parameter(parameter: inspect.Parameter) -> str:
    is_rest, is_named_rest = (
        parameter.kind is kind for kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    )
    stars = "*" if is_rest else "**" if is_named_rest else ""
    text = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {_annotation(parameter.annotation)}"
    default = parameter.default
    if default is parameter.empty:
        return text
    given = _default(default)
    return f"{text} = {given}" if ":" in text else f"{text}={given}"


def _default(default: object) -> str:
    if isinstance(default, enum.Enum):
        return repr(default.value)
    made = type(default)
    if is_dataclass(made) and default == made():
        return f"{made.__name__}()"
    return "..." if repr(default)[0] == "<" else repr(default)  # a factory, a sentinel


def _keywords(function: Callable[..., object]) -> Iterator[str]:
    """Yield which options a function takes as keywords of their own."""
    parameters = dict.fromkeys(parameter for parameter, _ in flat_fields(function).values())
    if not parameters:
        return
    groups = inspect.signature(function).parameters
    yield from ("", "**Options as keywords**", "")
    for parameter in parameters:
        group = type(groups[parameter].default).__name__
        prefix = parameter.removesuffix(group.lower())
        of_all = f"every option of [`{group}`](#{group.lower()})"
        yield f"- `{parameter}`: {of_all}{f', with `{prefix}` before its name' if prefix else ''}"


def _options(group: type) -> Iterator[str]:
    """Yield the options of a group as a table; what programs alone can give is in its docstring."""
    asked = [(of, option) for of in fields(group) if (option := option_of(of))]
    if not asked:
        return
    yield from ("", "| keyword | command line | default | |", "|---|---|---|---|")
    for of, option in asked:
        flag = option.flag or _flag(of.name, of.default)
        help_text = option.help.replace("|", "\\|").replace("*", "\\*")
        yield f"| `{of.name}` | `{flag}` | `{_default(of.default)}` | {help_text} |"


def _flag(name: str, default: object) -> str:
    text = f"--{name.replace('_', '-')}"
    return f"{text}/--no-{text[2:]}" if default is True else text


def _annotation(annotation: object) -> str:
    return str(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))


def _docstring(thing: object) -> Iterator[str]:
    """Yield a Google docstring as Markdown."""
    text = inspect.getdoc(thing) or ""
    parts = re.split(rf"^({'|'.join(_SECTIONS)}):\n", text, flags=re.MULTILINE)
    yield _prose(parts[0])
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        yield from ("", f"**{title}**", "")
        inside, *behind = re.split(r"\n\n(?=\S)", body, maxsplit=1)
        inside = dedent(inside).strip()
        if title in ("Returns", "Yields"):
            yield _prose(inside)
        else:
            for entry in re.split(r"\n(?=\S)", inside):
                named, _, meaning = entry.partition(":")
                yield f"- `{named}`: {_prose(' '.join(meaning.split()))}"
        yield from ("", *map(_prose, behind)) if behind else ()


def _prose(text: str) -> str:
    """Return text of a docstring as Markdown: literals, and blocks of code after ``::``."""
    paragraphs = []
    for paragraph in text.strip("\n").split("\n\n"):
        if paragraph.strip() == "::":
            continue
        if paragraph.startswith("    "):
            paragraph = f"```python\n{dedent(paragraph)}\n```"  # noqa: PLW2901
        else:
            paragraph = re.sub(r"``([^`]+)``", r"`\1`", paragraph)  # noqa: PLW2901
        paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]


# Parts of pages.


def errors_table() -> str:
    """Return the error codes with their exceptions."""
    lines = ["| code | exit code | exception | means |", "|---|---|---|---|"]
    for error in error_classes():
        code = error.code.value
        exception = f"[`{error.__name__}`](reference/python.md#{error.__name__.lower()})"
        summary = _prose(_first_sentence(inspect.getdoc(error) or ""))
        lines.append(f"| [`{code}`](#{code}) | {error.exit_code.value} | {exception} | {summary} |")
    return "\n".join(lines)


def findings_table() -> str:
    """Return the sections of the specification with the codes of their rules."""
    codes: dict[str, list[str]] = {}
    for rule in RULES.values():
        codes.setdefault(rule.anchor, []).append(f"`{rule.code}` {rule.slug.replace('_', ' ')}")
    lines = ["| what is wrong | findings |", "|---|---|"]
    for anchor, rules in codes.items():
        section = f"[{anchor.replace('-', ' ')}](../spec/v1/archive.md#{anchor})"
        lines.append(f"| {section} | {', '.join(rules)} |")
    return "\n".join(lines)


def kinds_table() -> str:
    """Return the kinds that are one document, and what MLflow's API makes anew of them."""
    lines = ["| kind | in the archive, below `data/` | through MLflow's API |", "|---|---|---|"]
    for kind, described in ENTITY_KINDS.items():
        place = "experiments/<id>/" if described.of_experiment else ""
        anew = "; ".join(filter(None, (described.anew, described.parts_anew)))
        name = str(kind).replace("_", " ")
        lines.append(f"| {name} | `{place}{described.folder}/` | {anew or 'as it was'} |")
    return "\n".join(lines)


def catalogue_tables() -> str:
    """Return the tables of a catalogue with their columns."""
    lines: list[str] = []
    for kind in TABLES.values():
        order = ", ".join(f"`{name}`" for name in kind.order)
        groups = f"row groups of {kind.group_rows:,} rows"
        lines += ["", f"### {kind.name}", "", f"Sorted by {order}; {groups}.", ""]
        lines += ["| column | Arrow type | may be null | meaning |", "|---|---|---|---|"]
        for column, meaning in zip(kind.schema, kind.meaning, strict=True):
            null = "yes" if column.nullable else "no"
            lines.append(f"| `{column.name}` | {column.type} | {null} | {meaning} |")
    return "\n".join(lines[1:])


PAGES: dict[str, Callable[[], str]] = {
    "../mlflow_exim_plugin/__init__.pyi": stub.stub,
    "reference/cli.md": cli_page,
    "reference/python.md": python_page,
    **{f"images/{name}.svg": partial(plots.svg, plot) for name, plot in plots.PLOTS.items()},
}
"""Files that are generated as a whole, by their path below ``docs``."""
PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "rules": ("compare.md", rules_table),
    "moved": ("compare.md", partial(rules_table, MOVED_RULES)),
    "errors": ("troubleshooting.md", errors_table),
    "findings": ("troubleshooting.md", findings_table),
    "kinds": ("kept-and-lost.md", kinds_table),
    "catalogue": ("../spec/v1/catalogue.md", catalogue_tables),
}
"""Parts of other pages, by the name in their marker."""


def generated() -> dict[str, str]:
    """Return the text of every page that has something generated, by its path below ``docs``."""
    texts = {path: page() for path, page in PAGES.items()}
    for name, (path, part) in PARTS.items():
        text = texts.get(path) or (DOCS / path).read_text("utf-8")
        begin = f"<!-- generated by docs/generate.py: {name} -->\n"
        before, begins, rest = text.partition(begin)
        _, ends, after = rest.partition("<!-- end -->")
        if not begins or not ends:
            raise SystemExit(f"{path} has no place for {name}")
        texts[path] = f"{before}{begin}\n{part()}\n\n{ends}{after}"
    return texts


def main() -> int:
    """Write or check the pages."""
    stale = []
    for path, text in generated().items():
        target = DOCS / path
        if target.exists() and target.read_text("utf-8") == text:
            continue
        stale.append(path)
        if sys.argv[1:] != ["--check"]:
            target.write_text(text, "utf-8")
    if sys.argv[1:] == ["--check"] and stale:
        print(f"not current, run docs/generate.py: {', '.join(stale)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
