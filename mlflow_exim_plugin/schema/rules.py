"""The numbered rules of spec/v1: one code for each MUST (E...) and each SHOULD (W...).

Codes are append-only. ``tests/conformance`` holds that every code here has an anchor in
``spec/v1/archive.md``, a row in ``spec/v1/codes.md`` and a sample in ``samples/v1/bad`` or
``samples/v1/warn`` that breaks it. The limits that a reader holds an archive to stand here too.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import asdict, dataclass, fields

from mlflow_exim_plugin.errors import UsageError

__all__ = [
    "EXPANSION",
    "LIMITS",
    "LIMITS_VARIABLE",
    "RULES",
    "Finding",
    "Limits",
    "Rule",
]

EXPANSION = "E065"
"""The rule on what a few bytes of an archive may become."""

LIMITS_VARIABLE = "MLFLOW_EXIM_LIMITS"
"""Environment variable that gives a reader other limits: ``NAME=NUMBER``, one or several."""

_MOST = {"depth": 200, "document_bytes": 1 << 30}
"""What reads and writes JSON here can do in one piece, and without a stack that ends."""


@dataclass(frozen=True)
class Limits:
    """What a reader takes of an archive at most; what is over one is refused unread.

    Attributes:
        frames: Frames of the file.
        frame_bytes: Decompressed size of a frame, and the window that it needs.
        members: Members, tag files included.
        manifest_bytes: Size of a manifest.
        archive_bytes: Decompressed size of all frames together.
        document_bytes: Size of a JSON document.
        document_values: Values in a JSON document.
        depth: Arrays and objects of a JSON document that stand in each other.
        row_group_rows: Rows of a row group.
        row_group_bytes: Decoded size of a row group, each text counted where it stands.
        table_footer_bytes: Size of the footer of a Parquet file.
        column_values: Values of one column of a row group.
        column_pages: Pages of one column of a row group.
        named: Failures, losses and what else ``info`` tells of, in one list.
        expansion: How many times as large as what is stored of it a large row group may be.
        free_bytes: Size up to which a document or manifest may be made of anything.
        text_expansion: How many times as large as what is stored of it a larger one may be.
        free_values: Values up to which a document may be made of anything; one of more has a
            byte stored for each.
    """

    frames: int = 1 << 24
    frame_bytes: int = 64 << 20
    members: int = (1 << 22) - 1
    manifest_bytes: int = 512 << 20
    archive_bytes: int = (1 << 63) - 1
    document_bytes: int = 256 << 20
    document_values: int = 1 << 22
    depth: int = 100
    row_group_rows: int = 1 << 20
    row_group_bytes: int = 512 << 20
    table_footer_bytes: int = 8 << 20
    column_values: int = 1 << 24
    column_pages: int = 1 << 16
    named: int = 100_000
    expansion: int = 1000
    free_bytes: int = 16 << 20
    text_expansion: int = 16
    free_values: int = 1 << 19

    @classmethod
    def of_environment(cls) -> Limits:
        """Return the format's limits, but for those that ``MLFLOW_EXIM_LIMITS`` gives.

        Raises:
            UsageError: It says what cannot be understood.
        """
        text = os.environ.get(LIMITS_VARIABLE, "")
        return cls(**dict(map(_limit, text.replace(",", " ").split()))) if text else LIMITS

    @property
    def others(self) -> dict[str, int]:
        """Those that are not the format's."""
        return {name: most for name, most in asdict(self).items() if most != getattr(LIMITS, name)}

    def expands_too_much(self, size_bytes: int, stored_bytes: int) -> bool:
        """Whether so many bytes of an archive may not become so many."""
        return size_bytes > self.expansion * max(stored_bytes, 1)

    def is_text_paid(self, size_bytes: int, stored_bytes: int) -> bool:
        """Whether a document or manifest may be made of so many bytes of an archive."""
        return size_bytes <= max(self.free_bytes, self.text_expansion * stored_bytes)

    def hint(self, name: str) -> str:
        """Return what whoever trusts an archive can do about a limit."""
        return f"it is no archive of this format, or needs {LIMITS_VARIABLE}={name}=NUMBER"


LIMITS = Limits()
"""Those of the format."""


def _limit(typed: str) -> tuple[str, int]:
    name, _, number = typed.partition("=")
    names = [of.name for of in fields(Limits)]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise UsageError(f"{LIMITS_VARIABLE} has no limit {name[:60]!r}", hint)
    if not (number.isascii() and number.isdecimal() and len(number) < 20 and int(number)):
        raise UsageError(
            f"{LIMITS_VARIABLE}: {name} is no number above zero", f"write {name}=1000000"
        )
    if int(number) > (most := _MOST.get(name, int(number))):
        raise UsageError(f"{LIMITS_VARIABLE}: {name} is {most} at most")
    return name, int(number)


@dataclass(frozen=True)
class Rule:
    """One requirement of the spec.

    Attributes:
        code: ``E`` or ``W`` and three digits; never reused.
        slug: Short name with underscores, the rest of its sample's folder name.
        sentence: The requirement as the spec words it.
        anchor: Heading anchor in ``spec/v1/archive.md``.
        since: Version of the format that has it first.
    """

    code: str
    slug: str
    sentence: str
    anchor: str
    since: str = "1.0"

    @property
    def is_error(self) -> bool:
        """True for a MUST, false for a SHOULD."""
        return self.code.startswith("E")


@dataclass(frozen=True)
class Finding:
    """One place where an archive breaks one rule.

    Attributes:
        code: The rule's code.
        path: Member path, or a structure's name such as ``<footer>``.
        message: What was found there, one line.
    """

    code: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.code} {self.path}: {self.message}"


# Container rules: E001-E049 and W001-W019. Object rules: E050-E099 and W020-W049.
_OF_SECTION: dict[str, dict[str, str]] = {
    "member-paths": {
        "E001 path_relative": "A member path MUST be relative: segments joined by '/', none of "
        "them empty, '.' or '..'.",
        "E002 path_characters": "A member path MUST NOT hold a backslash, any of '\"%*:<>?|', a "
        "control character, U+2028 or U+2029.",
        "E003 path_edges": "A path segment MUST NOT begin or end with white space, nor end with a "
        "dot.",
        "E004 path_device_name": "A path segment MUST NOT be a Windows device name, with or "
        "without a suffix.",
        "E005 path_normalization": "A member path MUST be in Unicode normalization form C.",
        "E006 path_length": "A path segment MUST be at most 240 bytes of UTF-8, a member path at "
        "most 1024.",
        "E007 path_collision": "Member paths MUST be unique after normalization form C and case "
        "folding.",
        "E008 path_file_and_folder": "No member path MUST be a folder of another, compared like "
        "E007.",
        "E009 text_encoding": "Member paths, manifests and tag files of the bag MUST be UTF-8.",
    },
    "seek-table": {
        "E010 seek_table_missing": "An archive MUST end with a zstd seek table.",
        "E011 seek_table_malformed": "The seek table MUST be one skippable frame 0x184D2A5E of at "
        "most 2^24 entries with checksums, its reserved bits zero.",
        "E012 frame_sizes": "The compressed sizes in the seek table MUST add up to the offset of "
        "the seek table.",
        "E016 seek_table_checksum": "A checksum in the seek table MUST equal the one in its frame.",
    },
    "hostile-input": {
        "E013 frame_limit": "A frame MUST NOT hold more than 64 MiB decompressed, nor need a "
        "larger window.",
        "E065 expansion": "A JSON document of more than 48 MiB and a row group of more than 64 MiB "
        "MUST NOT be more than 1000 times as large as the frames that hold its member.",
    },
    "frames": {
        "E014 frame_header": "Every frame but the last three MUST be one zstd frame with a "
        "content size equal to the seek table's, greater than zero, a checksum and no dictionary.",
        "E015 frame_damaged": "A frame MUST decompress to its content size and checksum.",
        "W002 frame_granularity": "A frame SHOULD hold at most 4 MiB decompressed.",
    },
    "footer": {
        "E017 footer_malformed": "The last frame before the seek table MUST be a skippable frame "
        "0x184D2A5C of JSON with all required keys.",
        "E018 format_name": "The footer's format MUST be 'mlflow-exim-archive'.",
        "E021 algorithm": "The digest algorithm of version 1 MUST be sha256.",
        "E023 tar_bytes": "The footer's tar_bytes MUST be the sum of the decompressed sizes of "
        "all frames.",
        "E024 member_count": "The footer's members MUST be the number of members in the index, in "
        "the tar stream and in both manifests plus the tag manifest.",
    },
    "versioning": {
        "E019 version_unsupported": "A reader MUST refuse an archive of another major version.",
        "E020 feature_unsupported": "A reader MUST refuse an archive whose required features it "
        "does not all know.",
    },
    "tar-stream": {
        "E022 base_directory": "The footer's base_directory MUST be one allowed path segment, and "
        "every member of the tar stream MUST lie in it.",
        "E035 tar_header": "A tar header MUST be POSIX ustar or pax with path, linkpath and size "
        "only, with a right checksum.",
        "E036 tar_member_type": "A tar member MUST be a regular file or a hard link.",
        "E037 tar_link": "A hard link MUST point to an earlier regular member of the same content "
        "and have no data.",
        "E038 tar_duplicate": "A member MUST be in the tar stream once.",
        "E039 tar_padding": "The tar stream MUST pad with zero bytes and end with exactly two "
        "zero blocks.",
        "W001 tar_metadata": "Tar headers SHOULD have mtime, uid and gid 0, mode 0644, no names, "
        "and pax records only where needed.",
    },
    "index": {
        "E025 index_malformed": "The index MUST be the skippable frame 0x184D2A5B right before "
        "the footer, with the size and digest the footer declares.",
        "E026 index_row": "A row of the index MUST give the place and size of its member's data "
        "in the tar stream.",
    },
    "manifests": {
        "E027 root_digest": "The footer's root MUST be the SHA-256 of tagmanifest-sha256.txt.",
        "E028 manifest_syntax": "A manifest MUST be lines of 64 lower-case hex digits, two "
        "spaces, a path and LF, sorted by path as UTF-8.",
        "E029 member_digest": "The bytes of a member MUST have the digest its manifest gives.",
        "E030 manifest_coverage": "manifest-sha256.txt MUST list every member in data/ and "
        "tagmanifest-sha256.txt every other one but itself, and nothing else.",
        "E031 member_missing": "Every member of the manifests MUST be in the tar stream.",
        "E032 bag_declaration": "bagit.txt MUST be the two lines 'BagIt-Version: 1.0' and "
        "'Tag-File-Character-Encoding: UTF-8'.",
        "E033 payload_oxum": "The Payload-Oxum in bag-info.txt MUST be the bytes and number of "
        "the members in data/.",
        "E034 bag_fetch": "A bag MUST be whole: no fetch.txt.",
    },
    "json-documents": {
        "E050 json_invalid": "A JSON document MUST be UTF-8 JSON of at most 256 MiB, "
        "4,194,304 values and 100 levels, without repeated keys, bare NaN or infinities, numbers "
        "beyond a double or lone surrogates.",
    },
    "envelopes": {
        "E051 document_field": "A document MUST have the fields of its schema, of the schema's "
        "types.",
    },
    "layout": {
        "E052 identity": "The id, name or number in an envelope MUST be the one its path encodes, "
        "and an object MUST have one envelope.",
        "E056 listing": "An experiment MUST list its runs and logged models, a registered model "
        "or prompt its versions, and data/archive.json experiments, models, prompts and "
        "workspaces: all that are in the archive and no others.",
        "E057 header": "exim.json MUST be there and have the format, version and required "
        "features of the footer.",
        "W020 unnamed_member": "Every member of the payload SHOULD be named by an envelope.",
    },
    "metric-histories": {
        "E053 metrics_range": "The row ranges of the run envelopes MUST cover every row of a "
        "metrics file once, each row belonging to the run that names it.",
        "E059 metrics_file": "A metrics file MUST be Parquet with the columns run_id, key, step, "
        "timestamp and value of the format, in row groups of at most 1,048,576 rows "
        "and 512 MiB.",
        "E060 metrics_order": "Rows MUST be sorted by run_id, key, step, timestamp and the bits "
        "of value.",
    },
    "artifacts": {
        "E054 artifact_entry": "An artifact entry MUST name a member of the archive, with its "
        "size and digest.",
    },
    "content-digests": {
        "E055 content_digest": "An envelope's content_digest MUST be the digest of its content.",
        "E061 metrics_digest": "A run's metrics digest MUST be the digest of its rows.",
        "E064 trace_digest": "A trace's content_digest MUST be the digest of its content.",
    },
    "content-root": {
        "E067 content_root": "The content_root of data/archive.json MUST be there and be the "
        "digest of the content digests of all objects.",
    },
    "log": {
        "E068 log_chain": "The events of the log MUST be numbered from 00001 on without a gap, be "
        "at most 64 KiB each, and name the digest of the one before, the last one the archive's "
        "content root.",
    },
    "count-law": {
        "E058 counts": "data/archive.json MUST be there; for every kind found MUST be written + "
        "skipped + failed, written the number of such objects in the archive, and every total a "
        "total of what is there.",
        "E066 failures_named": "For every kind the failures of data/archive.json MUST stand for as "
        "many objects as failed counts.",
        "W021 failures": "An archive SHOULD hold everything that was selected.",
    },
    "traces": {
        "E062 trace_table": "A table of a part of traces MUST be Parquet with the columns of "
        "tables.md, in row groups of at most 1,048,576 rows and 512 MiB.",
        "E063 trace_rows": "The rows of a part MUST be sorted by trace_id, a trace MUST have one "
        "row, every span and assessment MUST belong to a trace that counts it, and every object "
        "MUST have the fields that all of its kind have.",
    },
}
"""Code, slug and sentence of each rule, by the section of the spec that has it."""

_SINCE = {
    **dict.fromkeys(("E062", "E063", "E064", "E065"), "1.1"),
    "E066": "1.2",
    "E067": "1.3",
    "E068": "1.3",
}

RULES: dict[str, Rule] = {
    rule.code: rule
    for rule in sorted(
        (
            Rule(name[:4], name[5:], sentence, anchor, _SINCE.get(name[:4], "1.0"))
            for anchor, rules in _OF_SECTION.items()
            for name, sentence in rules.items()
        ),
        key=lambda rule: rule.code,
    )
}
