"""The one gate for paths and places that a source names."""

from __future__ import annotations

import pytest

from mlflow_exim_plugin.host.files.gate import path_problem, place_problem
from mlflow_exim_plugin.schema.objects import Kind

LEAD_OUT = [
    "..", "../x", "a/../../x", "a/..", "/etc/passwd", "//host/x", "a//x", "", "./x", "a/.",
    "..\\x", "a\\..\\..\\x", "\\\\host\\x", "C:\\x", "c:/x", "C:x", "a\0b", "a/\0",
    "%2e%2e/x", "..%2fx", "%252e%252e%252fx", "%2fetc", "a%00b", "a/..%5c..%5cx",
]  # fmt: skip
STAY = [
    "a", "a/b.txt", "issue #7.txt", "back\\slash.txt", "100% [a-z]*.txt", "..a", "a..", "a/...",
    "Ünï/日本語 ✓.json", "console.log", "%41", " a ",
    "aux/loss.csv", "CON", "a/nul.txt",  # devices on Windows, and files everywhere else
]  # fmt: skip
NOT_TOLD = [
    "file:///etc", "FILE:///etc", "file:/etc", "/etc", "etc", "../etc", "", "C:\\x",
    "mlflow-artifacts:/9/other/artifacts", "http://169.254.169.254/", "sftp://host/etc",
    "local:///etc", "models:/m-1/../../x", "runs:/r1/..%2f..%2fx", "s3://bucket/a/../b",
]  # fmt: skip
TOLD = ["s3://bucket/model", "gs://bucket/m", "wasbs://c@a/m", "runs:/r1/model", "models:/m-1"]


@pytest.mark.parametrize("path", LEAD_OUT)
def test_what_could_lead_out_of_a_folder_is_refused(path: str) -> None:
    assert path_problem(path)


@pytest.mark.parametrize("path", STAY)
def test_odd_names_that_stay_in_their_folder_are_taken(path: str) -> None:
    assert not path_problem(path)


@pytest.mark.parametrize("place", NOT_TOLD)
def test_no_target_is_told_of_what_its_server_could_take_for_its_own_disk(place: str) -> None:
    assert place_problem(place)


@pytest.mark.parametrize("place", TOLD)
def test_what_lies_elsewhere_may_stay_there(place: str) -> None:
    assert not place_problem(place)


def test_prompts_have_a_word_for_a_source() -> None:
    assert not place_problem("dummy-source", Kind.PROMPT_VERSION)
    assert place_problem("..", Kind.PROMPT_VERSION)
    assert place_problem("file:///etc", Kind.PROMPT_VERSION)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("c:/x", "it is absolute"),
        ("C:\\x", "it is absolute"),
        ("x:y", "a drive of Windows"),
        ("xy:z", ""),
        ("folder/x:y", ""),
    ],
)
def test_a_drive_is_told_from_what_is_absolute(path: str, problem: str) -> None:
    said = path_problem(path)
    assert (problem in said) if problem else not said
