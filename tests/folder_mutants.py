"""Folders of files as they come back from disks, syncs and people: damaged at a few places."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["mutate"]


class Mutant:
    """A folder that is being damaged.

    Args:
        root: The folder.
        chance: Chooses what happens.
        outside: A folder beside it, with what is nobody's business.

    Attributes:
        touched: What was changed or made, as paths in the folder.
    """

    def __init__(self, root: Path, chance: random.Random, outside: Path) -> None:
        self.root = root
        self.chance = chance
        self.outside = outside
        self.touched: list[str] = []

    def any_file(self) -> Path:
        """Choose a file: first one of its kind of place, or there would be nothing but tags."""
        kinds: dict[tuple[str, ...], list[Path]] = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and not path.is_symlink():
                parts = path.relative_to(self.root).parts
                kinds.setdefault(tuple(p for p in parts[:-1] if p.isalpha()), []).append(path)
        chosen = self.chance.choice(self.chance.choice(sorted(kinds.items()))[1])
        return self.touch(chosen)

    def any_folder(self) -> Path:
        folders = [p for p in sorted(self.root.rglob("*")) if p.is_dir() and not p.is_symlink()]
        return self.touch(self.chance.choice(folders))

    def touch(self, path: Path) -> Path:
        self.touched.append(str(path.relative_to(self.root)))
        return path

    # What happens to a file

    def cut(self) -> None:
        file = self.any_file()
        content = file.read_bytes()
        file.write_bytes(content[: self.chance.randrange(len(content) + 1)])

    def empty(self) -> None:
        self.any_file().write_bytes(b"")

    def remove(self) -> None:
        self.any_file().unlink()

    def rename(self) -> None:
        file = self.any_file()
        other = file.name + ".bak" if self.chance.random() < 0.5 else self.chance.choice("ab~é")
        file.replace(self.touch(file.with_name(other)))

    def spoil(self) -> None:
        file = self.any_file()
        content = bytearray(file.read_bytes() or b" ")
        content[self.chance.randrange(len(content))] = self.chance.choice(b"\xff\x00\n:{'x")
        file.write_bytes(content)

    def other_line_ends(self) -> None:
        file = self.any_file()
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))

    def wide_text(self) -> None:
        file = self.any_file()
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())

    def page_of_zeros(self) -> None:
        file = self.any_file()
        file.write_bytes(b"\0" * len(file.read_bytes()))

    def swap(self) -> None:
        one, other = self.any_file(), self.any_file()
        contents = one.read_bytes(), other.read_bytes()
        other.write_bytes(contents[0])
        one.write_bytes(contents[1])

    def folder_in_its_place(self) -> None:
        file = self.any_file()
        file.unlink()
        file.mkdir()
        if self.chance.random() < 0.5:
            (file / "inner").write_text("x")

    def pipe_in_its_place(self) -> None:
        file = self.any_file()
        file.unlink()
        os.mkfifo(file)

    def hide(self) -> None:
        self.any_file().chmod(0)

    def huge_line(self) -> None:
        file = self.any_file()
        file.write_bytes(file.read_bytes() + b"9" * 100_000)

    def odd_yaml(self) -> None:
        metas = sorted(self.root.rglob("*.yaml"))
        if not metas:
            return
        odd = (
            "!!python/object/apply:os.system ['true']\n",
            "- a\n- b\n",
            "a: &a [x, x]\nb: [*a, *a]\n",
            "? {a: b}\n: c\n",
            "start_time: 99999999999999999999999\n",
            "status: 77\n",
            "name: 2020-01-01\n",
            "name: {a: b}\n",
            "tags: [1]\n",
            "[" * 5000,
        )
        file = self.touch(self.chance.choice(metas))
        if file.is_file():
            before = file.read_text(errors="replace") if self.chance.random() < 0.7 else ""
            file.write_text(before + self.chance.choice(odd))

    def odd_field(self) -> None:
        metas = [path for path in sorted(self.root.rglob("*.yaml")) if path.is_file()]
        file = self.touch(self.chance.choice(metas))
        fields = yaml.safe_load(file.read_text())
        if not isinstance(fields, dict):
            return
        odd: tuple[object, ...]
        odd = (None, [], {}, [1], {"a": 1}, "x", "", 2**70, -1, 0, True, 1.5, "a\0b", "\u2028")
        name = self.chance.choice(sorted(fields))
        fields[name] = self.chance.choice(odd)
        file.write_text(yaml.dump(fields, allow_unicode=True))

    # What happens to a folder

    def remove_folder(self) -> None:
        shutil.rmtree(self.any_folder())

    def rename_folder(self) -> None:
        folder = self.any_folder()
        folder.replace(
            self.touch(folder.with_name(folder.name + self.chance.choice((".old", "2"))))
        )

    def copy_folder(self) -> None:
        folder = self.any_folder()
        copied = self.touch(folder.with_name(folder.name + " (copy)"))
        shutil.copytree(folder, copied, symlinks=True, copy_function=_copied_or_hidden)

    def move_folder(self) -> None:
        folder, into = self.any_folder(), self.any_folder()
        if not into.is_relative_to(folder):
            to = self.touch(into / folder.name)
            if not to.exists():
                folder.replace(to)

    def file_in_its_place(self) -> None:
        folder = self.any_folder()
        shutil.rmtree(folder)
        folder.write_text("a file")

    def hide_folder(self) -> None:
        self.any_folder().chmod(self.chance.choice((0, 0o111, 0o444)))

    def foreign(self) -> None:
        folder = self.any_folder()
        made = self.touch(folder / self.chance.choice((".ipynb_checkpoints", "@eaDir", "notes")))
        (made / "deep").mkdir(parents=True, exist_ok=True)
        (made / "deep" / "of others.txt").write_text("x")

    def foreign_file(self) -> None:
        name = self.chance.choice((".DS_Store", "Thumbs.db", "!", "a b", "ü", "meta.yaml~"))
        self.touch(self.any_folder() / name).write_bytes(b"\x00\x01")

    def no_unicode(self) -> None:
        folder = self.any_folder()
        name = os.fsdecode(self.chance.choice((b"caf\xe9", b"\xff\xfe", b"a\xc3")))
        made = self.touch(folder / name)
        if self.chance.random() < 0.3:
            made.mkdir()
            made /= "inner"
        made.write_text("1700000000000 0.5 0\n")

    def link(self) -> None:
        folder = self.any_folder()
        link = self.touch(folder / "link")
        elsewhere = self.any_file()
        self.touched.pop()
        to = self.chance.choice(
            (elsewhere, self.outside, self.outside / "private", folder, link, Path("/nowhere"))
        )
        link.symlink_to(to)

    def link_in_its_place(self) -> None:
        file = self.any_file()
        file.unlink()
        file.symlink_to(self.chance.choice((self.outside / "private", Path("/nowhere"), file)))

    def deep(self) -> None:
        folder = self.any_folder()
        place = self.touch(folder / "deep") / "/".join("d" * 40)
        place.mkdir(parents=True)
        (place / "end").write_text("x")


def _copied_or_hidden(source: str, target: str) -> None:
    try:
        shutil.copy2(source, target)
    except OSError:
        Path(target).touch()


WAYS: Sequence[Callable[[Mutant], None]] = [
    way for name, way in vars(Mutant).items() if callable(way) and name[0] != "_"
    if name not in {"any_file", "any_folder", "touch"}
]  # fmt: skip


def mutate(root: Path, seed: int, outside: Path) -> tuple[list[str], list[str]]:
    """Damage a folder at one to four places.

    Args:
        root: The folder; nothing beside it changes.
        seed: The same one does the same to the same folder.
        outside: A folder with a file ``private``, to which links may lead.

    Returns:
        What was done, and the paths that were touched.
    """
    chance = random.Random(seed)
    mutant = Mutant(root, chance, outside)
    done = []
    for number in range(chance.randint(1, 4)):
        way = WAYS[seed % len(WAYS)] if number == 0 else chance.choice(WAYS)
        before = len(mutant.touched)
        try:
            way(mutant)
        except OSError as error:  # two damages of one place
            done.append(f"{way.__name__}: {error.strerror}")
            continue
        done.append(f"{way.__name__} {mutant.touched[before:]}")
    return done, mutant.touched
