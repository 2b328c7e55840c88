"""``extract``: files out of an archive into a folder."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import NotFoundError, UsageError
from mlflow_exim_plugin.operations.ends import ARCHIVES, open_source
from mlflow_exim_plugin.operations.look.meaning import with_run_ids
from mlflow_exim_plugin.options import (
    Extracting,
    Opening,
    Selection,
    Work,
    flat,
    is_glob,
    matches,
    version_asked,
)
from mlflow_exim_plugin.schema.objects import Artifact, Failure, Kind
from mlflow_exim_plugin.schema.report import Extraction
from mlflow_exim_plugin.sinks.files.folder import file_folder
from mlflow_exim_plugin.sinks.files.places import Places
from mlflow_exim_plugin.sinks.files.sink import FileSink
from mlflow_exim_plugin.sinks.files.writer import FileWriter
from mlflow_exim_plugin.transfer import stopped, transfer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.container.member_stream import Member
    from mlflow_exim_plugin.container.members import Members

__all__ = ["extract"]


@flat()
def extract(
    archive: str,
    folder: str,
    *,
    opening: Opening = Opening(),
    selection: Selection = Selection(),
    extracting: Extracting = Extracting(),
    work: Work = Work(),
) -> Extraction:
    """Write artifacts of an archive, or members of it, as files of a folder.

    The files of one run, or of one version of a model, that is named lie directly in the folder;
    otherwise each object has a folder of its own there, such as
    ``experiments/churn/runs/bold-crow-2f0c1b4a``. Files of a logged model are below its run, in a
    folder of its name, where MLflow shows them too; those of a version are those that it was made
    of. A file is complete at its name, with its digest, or not there.

    Args:
        archive: Path or fsspec URL of the archive.
        folder: Path of a folder; made if it is not there.
        opening: How the archive is opened; each option is a keyword of its own too, here and below.
        selection: Whose files; those of all runs, models and skills without it. ``include`` and
            ``exclude`` are globs of paths as MLflow shows them; of members with ``members``.
        extracting: How files are written.
        work: How much is done at once, and whether at all.

    Returns:
        Which files are in the folder now, and which are not and why; ``ok`` is false when one is
        not. A file that was there with the same bytes is skipped.

    Raises:
        NotFoundError: The archive, a name or id in the selection, or any file that matches the
            globs, is not there.
        InvalidArchiveError: The archive cannot be opened.
        UnsupportedFormatError: The archive needs a newer reader.
        UsageError: ``folder`` is none, or not of this machine.
        StoreError: The archive cannot be read, or nothing can be written.
        PartialTransferError: A file failed and ``strict`` was asked for.
    """
    report = Extraction(dry_run=work.dry_run)
    globs = _Globs(selection)
    opened = open_source(archive, opening, contents=False, among=(ARCHIVES,))
    with (
        opened as source,
        file_folder(folder, overwrite=extracting.overwrite, dry_run=work.dry_run) as target,
        closing(FileWriter(target, report, jobs=work.jobs, progress=work.progress)) as writer,
    ):
        assert source.archive is not None  # noqa: S101 - it is among no others
        reader = source.archive.reader
        report.root = reader.root
        if extracting.members:
            _take_members(reader, selection, globs, writer)
            if work.strict and report.failures:
                raise stopped(report)
        else:
            asked = replace(
                selection, alone=True, artifacts=True, traces=False, include=(), exclude=()
            )
            asked = with_run_ids(asked, source.archive)
            is_one = _names_one(selection) and len(asked.runs) < 2
            sink = FileSink(writer, Places(one=is_one), globs.take)
            transfer(source.names, sink, asked, report=report, strict=work.strict)
    if globs.unmatched == set(selection.include) and selection.include and not report.failures:
        what = "member" if extracting.members else "artifact"
        raise NotFoundError(f"no {what} matches {', '.join(map(repr, selection.include))}")
    for glob in selection.include:
        if glob in globs.unmatched:
            report.failed(Failure(Kind.ARTIFACT, glob, "there is nothing that it matches"))
    return report


class _Globs:
    """Which files are asked for, and which of the globs had none.

    Args:
        selection: With the globs.
    """

    def __init__(self, selection: Selection) -> None:
        self._include = selection.include
        self._exclude = selection.exclude
        self.unmatched = set(selection.include)

    def take(self, names: Iterable[str]) -> bool:
        """Whether a file is asked for that has these names; a folder stands for all in it."""
        places = [name[:at] for name in names for at in _ends_of_folders(name)]
        met = [glob for glob in self._include if matches((glob,), places)]
        self.unmatched.difference_update(met)
        return bool(met or not self._include) and not matches(self._exclude, places)


def _ends_of_folders(path: str) -> list[int]:
    return [*(at for at, char in enumerate(path) if char == "/"), len(path)]


def _take_members(reader: Members, selection: Selection, globs: _Globs, writer: FileWriter) -> None:
    if replace(selection, include=(), exclude=()) != Selection():
        raise UsageError("members are taken by their paths alone", "leave out the other options")
    taken = [member for member in reader.members() if globs.take((member.path,))]
    reader.expect(member.path for member in taken)

    def place(member: Member) -> tuple[str, int]:
        return reader.holder(member.path).place_in_file(member.path)

    for member in sorted(taken, key=place):
        opener = partial(reader.open_member, member.path)
        writer.put(member.path, Artifact(member.path, member.size_bytes, opener, member.sha256))
    writer.finish()


def _names_one(selection: Selection) -> bool:
    """Whether one run, or one version of a model, and nothing else was named."""
    named = (*selection.experiments, *selection.runs, *selection.models)
    if len(named) != 1 or selection.experiments or is_glob(named[0]):
        return False
    return bool(selection.runs or version_asked(named[0]))
