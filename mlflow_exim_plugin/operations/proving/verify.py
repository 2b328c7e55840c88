"""``verify``: an archive against every rule of the spec, or as many as there is time for."""

from __future__ import annotations

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.operations.proving.checks import Signers, Verification, broken, look
from mlflow_exim_plugin.operations.slips import require_archive
from mlflow_exim_plugin.options import Checking, Opening, Scaling, flat
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import as_set

__all__ = ["verify"]


@flat()
def verify(
    archive: str,
    *,
    opening: Opening = Opening(),
    checking: Checking = Checking(),
    scaling: Scaling = Scaling(),
) -> Verification:
    """Check an archive's bytes and documents against every rule of the spec.

    Args:
        archive: Path or fsspec URL.
        opening: How it is opened; each option is a keyword of its own too, here and below.
        checking: How much is looked at, and who must have said so.
        scaling: What looks at the archives of a set in several tasks.

    Raises:
        NotFoundError: There is nothing at ``archive``.
        InvalidArchiveError: It cannot be opened at all; ``findings`` say why.
        UnsupportedFormatError: It needs a newer reader.
        StoreError: It cannot be read.
    """
    require_archive(archive)
    if found := as_set(archive, opening.storage_options):
        from mlflow_exim_plugin.operations.proving.verify_set import verify_snapshot

        return verify_snapshot(*found, opening, checking, scaling)
    if scaling.is_asked:
        raise UsageError("one archive is verified in one task", "leave --engine out")
    signers = Signers(checking)
    with ArchiveReader.open(
        archive, storage_options=opening.storage_options, expected_root=checking.expected_root
    ) as reader:
        looked_at, seed, findings = look(reader, checking)
        bad = broken(findings)
        is_known = checking.level == "full" and not bad
        content_root = Archive(reader).content_root if is_known else None
        signatures, problems, is_signed = signers.check(archive, reader.root, opening)
        findings += problems
        return Verification(
            claimed_root=reader.root,
            members=len(reader),
            size_bytes=reader.size_bytes,
            expected_root=checking.expected_root,
            findings=findings,
            damaged=[member.path for member in reader.members() if member.path in bad],
            level=checking.level,
            looked_at=looked_at,
            seed=seed,
            content_root=content_root,
            signed=is_signed,
            signatures=signatures,
            limits=reader.limits.others,
        )
