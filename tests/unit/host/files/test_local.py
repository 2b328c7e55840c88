"""What is a file is listed, what is not is named and never opened."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.host.files.local import LocalFiles


def listed(root: Path, *, follows_links: bool = False) -> tuple[dict[str, int], dict[str, str]]:
    files = LocalFiles(root, follows_links=follows_links)
    return dict(files.walk()), files.problems


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "one").write_bytes(b"1")
    (folder / "b").write_bytes(b"22")
    return folder


def test_pipes_sockets_and_devices(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "pipe")
    monkeypatch.chdir(root)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("sock")
        (root / "null").symlink_to("/dev/null")

        files, problems = listed(root, follows_links=True)

    assert files == {"a/one": 1, "b": 2}
    assert {path: reason.split(",")[0] for path, reason in problems.items()} == {
        "pipe": "it is a named pipe",
        "sock": "it is a socket",
        "null": "it is a device",
    }


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(root: Path) -> None:
    files = LocalFiles(root, follows_links=False)
    assert "b" in dict(files.walk())
    (root / "b").unlink()
    os.mkfifo(root / "b")

    with pytest.raises(StoreError, match="no file"):
        files.open("b")
    with pytest.raises(StoreError, match="a/two: No such file"):
        files.open("a/two")


def test_links(root: Path, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    (private / "key").write_bytes(b"secret")
    (root / "self").symlink_to("self")
    (root / "a" / "up").symlink_to("..")
    (root / "gone").symlink_to("nowhere")
    (root / "out").symlink_to(private)
    (root / "file out").symlink_to(private / "key")
    (root / "same").symlink_to("a/one")
    (root / "again").symlink_to("a")

    files, problems = listed(root)

    assert files == {"a/one": 1, "b": 2, "same": 1, "again/one": 1}
    assert problems["self"] == "it is a link that leads to itself"
    assert problems["a/up"] == f"it is a link that leads back to {root}"
    assert problems["again/up"] == f"it is a link that leads back to {root}"
    assert problems["gone"] == "it is a link to nowhere, which is not there"
    assert "out of its folder; --follow-links" in problems["out"]
    assert set(problems) == {"self", "a/up", "again/up", "gone", "out", "file out"}
    asked, _ = listed(root, follows_links=True)
    assert asked == files | {"out/key": 6, "file out": 6}


def test_links_into_each_other_end(root: Path) -> None:
    (root / "c").mkdir()
    (root / "a" / "to c").symlink_to("../c")
    (root / "c" / "to a").symlink_to("../a")

    files, problems = listed(root)

    assert files == {"a/one": 1, "a/to c/to a/one": 1, "b": 2, "c/to a/one": 1}
    assert problems == {
        "a/to c/to a/to c": f"it is a link that leads back to {root / 'c'}",
        "c/to a/to c/to a": f"it is a link that leads back to {root / 'a'}",
    }


def test_a_root_behind_a_link_is_no_way_out(root: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").symlink_to(root)

    assert listed(tmp_path / "moved") == ({"a/one": 1, "b": 2}, {})


def test_names_that_are_no_text_come_escaped(root: Path) -> None:
    folder = os.fsencode(root) + b"/caf\xe9!"
    Path(os.fsdecode(folder)).mkdir()
    for name, content in ((b"\xff.txt", b"bytes"), ("über!".encode(), b"text")):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(content)
    files = LocalFiles(root, follows_links=False)

    found = dict(files.walk())

    assert found == {"a/one": 1, "b": 2, "caf!E9!21/!FF.txt": 5, "caf!E9!21/über!": 4}
    assert files.renamed == {"caf!E9!21": r"caf\xe9!", "caf!E9!21/!FF.txt": r"\xff.txt"}
    for path, content in (("caf!E9!21/!FF.txt", b"bytes"), ("caf!E9!21/über!", b"text")):
        with files.open(path) as stream:
            assert stream.read() == content


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
def test_a_folder_that_may_not_be_read_costs_itself(root: Path) -> None:
    (root / "a").chmod(0)

    assert listed(root) == ({"b": 2}, {"a": "Permission denied"})
    (root / "a").chmod(0o700)


def test_folders_nested_deeper_than_pythons_stack(root: Path) -> None:
    """Deeper than a path can be long: what can be reached is taken, the rest is named."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(850):
        os.mkdir("deep", dir_fd=here)
        inner = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)

    files, problems = listed(root)
    subprocess.run(["rm", "-r", root / "deep"], check=True)

    assert files == {"a/one": 1, "b": 2}
    assert list(problems.values()) == ["File name too long"]
