"""Options are declared once: the command line, the keywords and the types follow from it."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path

import click
import pytest

import mlflow_exim_plugin
from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.options import (
    Comparing,
    Indexing,
    OnConflict,
    Opening,
    Packing,
    Reading,
    Rename,
    Seeking,
    Selection,
    Work,
    Writing,
    flat,
    flat_fields,
    option_of,
    parse_time_ms,
)

ROOT = Path(__file__).parents[2]
COMMANDS: dict[str, tuple[type, ...]] = {
    "pack": (Selection, Opening, Reading, Packing, Work),
    "unpack": (Selection, Opening, Writing, Work),
    "copy": (Selection, Reading, Writing, Work),
    "diff": (Selection, Opening, Reading, Comparing),
    "find": (Seeking, Opening, Reading),
    "index": (Indexing,),
}


@flat(old_level="level")
def packed(
    name: str,
    *,
    opening: Opening = Opening(),
    b_opening: Opening = Opening(),
    selection: Selection = Selection(),
    packing: Packing = Packing(),
) -> tuple[object, ...]:
    return name, opening, b_opening, selection, packing


def test_a_keyword_and_a_group_say_the_same() -> None:
    whole = packed("x", selection=Selection(runs=("a",)), packing=Packing(level=7))

    assert whole == packed("x", runs=["a"][0], level=7)
    assert whole == packed("x", runs=("a",), packing=Packing(level=7))
    assert packed("x", packing=Packing(level=7), overwrite=True)[-1] == Packing(7, overwrite=True)


def test_a_group_of_one_side_has_keywords_of_its_own() -> None:
    _, both, b, _, _ = packed("x", registry_uri="r", b_registry_uri="s")

    assert (both, b) == (Opening(registry_uri="r"), Opening(registry_uri="s"))
    assert Opening(registry_uri="s").over(Opening("r", "files")) == Opening("s", "files")
    assert Opening().at("http://x").registry_uri == "http://x"


def test_what_is_no_option_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no option 'colour'") as caught:
        packed("x", colour="red")

    assert "overwrite" in str(caught.value.hint)


def test_an_old_name_still_works_and_says_so() -> None:
    with pytest.warns(FutureWarning, match="old_level is called level"):
        assert packed("x", old_level=9)[-1] == Packing(level=9)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Writing(on_conflict="replace"),  # type: ignore[arg-type]
        lambda: Writing(experiment_name="one", rename=Rename(experiments={"a": "b"})),
        lambda: Writing(rename={"models": {"a": "b"}}),  # type: ignore[arg-type]
        lambda: Work(jobs=0),
        lambda: Comparing(jobs=0),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: type) -> None:
    with pytest.raises(UsageError):
        wrong()


def test_text_is_a_policy() -> None:
    assert Writing(on_conflict="skip").on_conflict is OnConflict.SKIP  # type: ignore[arg-type]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_every_option_of_what_it_does(name: str) -> None:
    context = click.Context(exim)
    command = exim.get_command(context, name)
    assert command is not None
    helps = {
        p.help.partition(": ")[2] if p.help.startswith("For ") else p.help: p
        for p in command.params
        if isinstance(p, click.Option) and p.help
    }
    for group in COMMANDS[name]:
        for of in fields(group):
            if (option := option_of(of)) is not None:
                assert option.help in helps, f"{name} lacks {of.name}"


def test_an_option_is_called_alike_everywhere() -> None:
    """Environment variables are called after the long name (MLFLOW_EXIM_PACK_EXPERIMENT)."""
    context = click.Context(exim)
    for name in exim.list_commands(context):
        command = exim.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                long = next(o for o in parameter.opts if o.startswith("--"))
                assert parameter.name == long.removeprefix("--").replace("-", "_")


def test_no_keyword_means_two_things() -> None:
    for name in ("pack", "unpack", "copy", "diff", "lineage", "copies", "find", "index"):
        function = getattr(mlflow_exim_plugin, name)
        groups = {parameter for parameter, _ in flat_fields(function).values()}
        counted = sum(
            1
            for group in groups
            for of in fields(type(function.__wrapped__.__kwdefaults__[group]))
            if "option" in of.metadata
        )
        assert counted == len(flat_fields(function)), name


def test_times_can_be_said_from_now() -> None:
    now_ms, day_ms = time.time() * 1000, 86_400_000
    for text, ago_ms in {"7d": 7 * day_ms, "90m": 5_400_000, "2w": 14 * day_ms}.items():
        assert parse_time_ms(text) == pytest.approx(now_ms - ago_ms, abs=60_000)
    today_ms = now_ms // day_ms * day_ms
    assert parse_time_ms("today") == today_ms
    assert parse_time_ms("yesterday") == today_ms - day_ms
    assert parse_time_ms("yesterday", end=True) == today_ms - 1
    for text in ("999999999w", "7y", "tomorrow", "-7d", "7 d", ""):
        with pytest.raises(UsageError, match="not a time"):
            parse_time_ms(text)
