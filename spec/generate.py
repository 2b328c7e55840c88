"""Writes the parts of the spec that are the code's own words: codes, schemas and tables.

python spec/generate.py           rewrite what spec/v1 has of the code
python spec/generate.py --check   fail when one of them is not current
"""

# ruff: noqa: INP001 - a script

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mlflow_exim_plugin.container.unicode import UNASSIGNED, folded_alone  # noqa: E402
from mlflow_exim_plugin.schema import envelope, tables, traces  # noqa: E402
from mlflow_exim_plugin.schema.rules import LIMITS, RULES  # noqa: E402

FOLDER = Path(__file__).resolve().parent / "v1"
DOCUMENTS: dict[str, type[envelope.Document]] = {
    "exim": envelope.ArchiveHeader,
    "archive": envelope.ArchiveEnvelope,
    "experiment": envelope.ExperimentEnvelope,
    "run": envelope.RunEnvelope,
    "logged_model": envelope.LoggedModelEnvelope,
    "trace_part": envelope.TracePartEnvelope,
    "entity": envelope.EntityEnvelope,
    "model": envelope.ModelEnvelope,
    "version": envelope.VersionEnvelope,
    "event": envelope.LogEvent,
}
"""The JSON documents of an archive."""

_MADE = "<!-- Made by spec/generate.py from the code; do not edit. -->"
_MEANINGS = {
    "run_id": "run that the row belongs to",
    "key": "metric key as logged",
    "step": "step; negative ones are allowed",
    "timestamp": "milliseconds since the Unix epoch, UTC",
    "value": "IEEE 754 double, every bit kept: NaN, infinities and negative zero are values",
}

_OF_TRACES = {
    "spans": "number of its spans; null where the source had no payload",
    "assessments": "number of its assessments",
    "content_digest": "see Content digests in archive.md",
}


def codes() -> str:
    """Return codes.md."""
    lines = [
        "# Codes",
        "",
        _MADE,
        "",
        "Each code is one requirement of [archive.md](archive.md). `E` is a MUST: an archive that",
        "breaks it is invalid. `W` is a SHOULD: an archive that breaks it is valid. Codes are",
        "append-only: none is ever removed, renumbered or given another meaning. Gaps are free for",
        "later rules. Every code has a [sample](../../samples/README.md) that breaks it alone.",
        "`since` is the version of the format that has the code first.",
        "",
        "| code | name | requirement | section | since |",
        "|---|---|---|---|---|",
    ]
    for rule in RULES.values():
        sentence = rule.sentence.replace("|", "\\|")
        section = f"[{rule.anchor}](archive.md#{rule.anchor})"
        lines.append(f"| {rule.code} | `{rule.slug}` | {sentence} | {section} | {rule.since} |")
    return "\n".join(lines) + "\n"


def parquet_tables() -> str:
    """Return tables.md."""
    lines = ["# Parquet tables", "", _MADE, ""]
    lines += _columns("metrics/part-NNNNN.parquet", tables.METRICS, _MEANINGS)
    lines += [
        "",
        f"A row group has at most {LIMITS.row_group_rows:,} rows (E059). The package writes",
        f"row groups of {tables.ROW_GROUP_ROWS:,} rows and files of {tables.ROWS_PER_PART:,} rows.",
        "",
    ]
    for name, columns in traces.TABLES.items():
        lines += _columns(f"traces/{name}-NNNNN.parquet", columns, _of_traces(name))
        lines.append("")
    lines += [
        "## Types",
        "",
        "| Arrow type | in Parquet |",
        "|---|---|",
        "| string | BYTE_ARRAY with the logical type STRING, UTF-8 |",
        "| int64 | INT64 without a logical type, or with INT(64, signed) |",
        "| double | DOUBLE |",
        "| bool | BOOLEAN |",
        "| map<string, string> | a group MAP, its keys required, its values optional |",
        "",
        "A column that may not be null is REQUIRED, one that may is OPTIONAL. The size of a row",
        "group, for its limits, is that of its values decoded: 8 bytes a number, a bit a bool, and",
        "of each text its bytes and 4, however often a dictionary or page has it.",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _of_traces(name: str) -> dict[str, str]:
    owner = "trace id" if name == "traces" else f"trace that the {name[:-1]} belongs to"
    own = {column.name: column.meaning for column in traces.COLUMNS[name]}
    return {"trace_id": owner} | _OF_TRACES | own


def _columns(file: str, columns: Any, meanings: dict[str, str]) -> list[str]:
    lines = [
        f"## {file}",
        "",
        "| # | column | Arrow type | may be null | meaning |",
        "|---|---|---|---|---|",
    ]
    for number, field in enumerate(columns):
        null = "yes" if field.nullable else "no"
        lines.append(
            f"| {number} | `{field.name}` | {field.type} | {null} | {meanings[field.name]} |"
        )
    return lines


def folding() -> str:
    """Return folding.txt: what full case folding makes of each code point that it changes."""
    # What Unicode 13.0 leaves unassigned stays, also where this Python knows more.
    pairs = ((char, folded_alone(char)) for char in map(chr, range(sys.maxunicode + 1)))
    lines = [
        " ".join(f"{ord(char):04X}" for char in (before, *after))
        for before, after in pairs
        if before != after
    ]
    return "\n".join(lines) + "\n"


def schema(name: str) -> str:
    """Return the JSON Schema of one document."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "Made by spec/generate.py from the code. Other fields may be there.",
        **DOCUMENTS[name].model_json_schema(mode="validation"),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def generated() -> dict[str, str]:
    """Return every generated file by its path below ``spec/v1``."""
    files = {
        "codes.md": codes(),
        "tables.md": parquet_tables(),
        "unassigned.txt": "\n".join(UNASSIGNED.split()) + "\n",
        "folding.txt": folding(),
    }
    files.update({f"schema/{name}.schema.json": schema(name) for name in DOCUMENTS})
    return files


def main() -> int:
    """Write or check the files."""
    stale = []
    for path, text in generated().items():
        target = FOLDER / path
        if sys.argv[1:] == ["--check"]:
            is_current = target.exists() and target.read_text("utf-8") == text
            stale += [] if is_current else [path]
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, "utf-8")
    if stale:
        print(f"not current, run spec/generate.py: {', '.join(stale)}", file=sys.stderr)  # noqa: T201
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
