"""The text of the spec, the rules in the code and what is generated from them say the same."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from jsonschema import Draft202012Validator

from mlflow_exim_plugin.container import bag, frames, paths, tail, tarball
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.schema import provenance
from mlflow_exim_plugin.schema.canonical import canonical_bytes
from mlflow_exim_plugin.schema.envelope import FORMAT_VERSION
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.rules import LIMITS, RULES
from spec import generate
from spec.generate import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = (generate.FOLDER / "archive.md").read_text("utf-8")
HEADINGS = re.findall(r"^#{2,} (.+)$", TEXT, re.MULTILINE)
EXAMPLES: dict[str, str] = dict(
    re.findall(r"<!-- example: (\w+) -->\n```\w*\n(.*?)\n```", TEXT, re.DOTALL)
)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def section(name: str) -> str:
    """Return the text of a section with its subsections."""
    parts = re.split(r"^## (.+)$", TEXT, flags=re.MULTILINE)
    return next(
        body for head, body in zip(parts[1::2], parts[2::2], strict=True) if anchor(head) == name
    )


@pytest.mark.parametrize("code", RULES)
def test_every_code_stands_in_the_section_it_names(code: str) -> None:
    assert f"({code})" in section(RULES[code].anchor) or re.search(
        rf"\({code}(,| to)", section(RULES[code].anchor)
    )


def test_every_code_in_the_text_exists() -> None:
    assert set(re.findall(r"\b[EW]\d{3}\b", TEXT)) == set(RULES)


def test_codes_are_in_order_and_well_formed() -> None:
    for code, rule in RULES.items():
        assert code == rule.code
        assert re.fullmatch(r"[EW]\d{3}", code)
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", rule.slug)
        assert rule.sentence.endswith(".")
        words = {"SHOULD"} if code.startswith("W") else {"MUST", "MUST NOT"}
        assert any(word in rule.sentence for word in words)
    assert len({rule.slug for rule in RULES.values()}) == len(RULES)


def test_links_within_the_text_lead_somewhere() -> None:
    anchors = {anchor(heading) for heading in HEADINGS}
    links = set(re.findall(r"\]\(#([\w-]+)\)", TEXT))
    assert links <= anchors
    for target in re.findall(r"\]\((?!https://)([^)#]+)\)", TEXT):
        assert (generate.FOLDER / target).exists(), target


def test_generated_parts_are_current() -> None:
    for path, text in generate.generated().items():
        assert (generate.FOLDER / path).read_text("utf-8") == text, "run spec/generate.py"
    there = {path.name for path in (generate.FOLDER / "schema").iterdir()}
    assert there == {f"{name}.schema.json" for name in generate.DOCUMENTS}


def test_generator_checks_from_the_command_line() -> None:
    command = [sys.executable, str(generate.ROOT / "spec" / "generate.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("name", ["run", "archive"])
def test_example_documents_are_valid(name: str) -> None:
    document = json.loads(EXAMPLES[name])
    jsonschema.validate(document, json.loads(generate.schema(name)))
    parsed = generate.DOCUMENTS[name].model_validate(document)
    assert parsed.to_json()["mlflow"] == document["mlflow"]


_IS_INTEGER = Draft202012Validator.TYPE_CHECKER.redefine(
    "integer", lambda _checker, value: type(value) is int
)
_Validator: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, type_checker=_IS_INTEGER
)
OTHERS: list[Any] = [None, -1, 1.5, "x", [{}], {}]


@pytest.mark.parametrize("name", generate.DOCUMENTS)
def test_schemas_ask_for_what_the_code_asks_for(name: str) -> None:
    """Every field of a good document, taken away and replaced: both say the same of the rest."""
    validator = _Validator(json.loads(generate.schema(name)))
    document = DOCUMENTS[name]
    assert validator.is_valid(document)
    refused = 0
    for path in places(document):
        holder = document
        for step in path[:-1]:
            holder = holder[step]
        value = holder[path[-1]]
        for other in OTHERS:
            holder[path[-1]] = other
            refused += said_the_same(name, validator, document, path)
        if isinstance(holder, dict):
            del holder[path[-1]]
            refused += said_the_same(name, validator, document, path)
        holder[path[-1]] = value
    assert refused


def said_the_same(name: str, validator: Any, document: Any, path: tuple[Any, ...]) -> bool:
    is_valid = validator.is_valid(document)
    try:
        generate.DOCUMENTS[name].model_validate(document)
    except ValueError:
        assert not is_valid, path
    else:
        assert is_valid, path
    return not is_valid


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    # Of many alike one is enough.
    steps = [*value.items()][:16] if isinstance(value, dict) else [*enumerate(value[:1])]
    for step, inner in steps:
        yield (*above, step)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*above, step))


def _documents() -> dict[str, Any]:
    """One good document of each kind, the richest of the samples."""
    found: dict[str, Any] = {}
    for sample in (ROOT / "samples" / "v1" / "good").glob("*.tar.zst"):
        with ArchiveReader.open(str(sample)) as reader:
            for path in reader.paths():
                name = path.rpartition("/")[2].removesuffix(".json")
                if "/traces/part-" in path:
                    name = "trace_part" if path.endswith(".json") else ""
                elif "/datasets/" in path:
                    name = "entity"
                elif path.startswith("log/"):
                    name = "event"
                if name in generate.DOCUMENTS and "/artifacts/" not in path:
                    text = reader.read(path).decode()
                    if len(text) > len(found.get(name, "")):
                        found[name] = text
    documents = {name: json.loads(text) for name, text in found.items()}
    counts = documents["archive"]["info"]["counts"]
    documents["archive"]["info"]["counts"] = {"run": counts["run"]}
    return documents


DOCUMENTS = _documents()


def test_no_json_block_of_the_text_is_without_a_check() -> None:
    assert len(re.findall(r"^```json$", TEXT, re.MULTILINE)) == len(
        set(EXAMPLES) & {"run", "archive", "footer", "canonical"}
    )


def test_example_footer_is_parsed() -> None:
    frame = frames.skippable_frame(frames.FOOTER_MAGIC, EXAMPLES["footer"].encode())
    footer = tail.Footer.parse(frame)
    written = json.loads(footer.encode())
    assert written == json.loads(EXAMPLES["footer"])
    for key in set(written) - {"open_offset"}:
        shorter = {k: v for k, v in written.items() if k != key}
        with pytest.raises(ValueError, match="footer"):
            tail.Footer.parse(
                frames.skippable_frame(frames.FOOTER_MAGIC, json.dumps(shorter).encode())
            )


def test_worked_example_of_the_digests_is_right() -> None:
    run = json.loads(EXAMPLES["run"])
    metrics = bytes.fromhex(EXAMPLES["metrics"])
    columns = [
        struct.pack("<2q", 0, 1),
        struct.pack("<2q", 1000, 1005),
        struct.pack("<2d", 0.5, 0.25),
    ]
    wanted = struct.pack("<I", 4) + b"loss" + struct.pack("<Q", 2)
    assert metrics == wanted + b"".join(hashlib.sha256(column).digest() for column in columns)
    assert run["info"]["metrics"]["digest"] == f"sha256:{hashlib.sha256(metrics).hexdigest()}"

    hashed = EXAMPLES["canonical"].encode()
    assert run["info"]["content_digest"] == f"sha256:{hashlib.sha256(hashed).hexdigest()}"
    entries = [[a["path"], a["size_bytes"], a["sha256"]] for a in run["info"]["artifacts"]]
    body: dict[str, Any] = {
        "mlflow": run["mlflow"],
        "metrics": run["info"]["metrics"]["digest"],
        "artifacts": entries,
    }
    assert canonical_bytes(body) == hashed
    assert run["info"]["artifacts"][0]["sha256"] == hashlib.sha256(b"hello\n").hexdigest()


def test_limits_in_the_text_are_those_of_the_code() -> None:
    limits = section("limits")
    mib = 1 << 20
    for number in (
        f"{paths.MAX_SEGMENT_BYTES}; {paths.MAX_PATH_BYTES} bytes",
        f"{LIMITS.frame_bytes // mib} MiB",
        f"({LIMITS.members:,})",
        f"{tail.MAX_FOOTER_BYTES >> 10} KiB",
        f"{LIMITS.document_bytes // mib} MiB; {LIMITS.depth} levels",
        f"{LIMITS.row_group_rows:,}",
        f"{tarball._MAX_PAX_BYTES} bytes",
    ):
        assert number in limits, number
    assert LIMITS.frames == 1 << 24
    assert (LIMITS.frame_bytes - 16) // 16 == LIMITS.members


def test_constants_in_the_text_are_those_of_the_code() -> None:
    assert f"version {FORMAT_VERSION}" in TEXT
    assert ".".join(map(str, tail.FORMAT_VERSION)) == FORMAT_VERSION
    assert f"`{tail.FORMAT}`" in TEXT
    for magic in (frames.INDEX_MAGIC, frames.FOOTER_MAGIC, frames.SEEK_TABLE_MAGIC):
        assert f"0x{magic:08X}" in TEXT
    assert f"0x{frames._TABLE_END_MAGIC:08X}" in TEXT
    for line in bag.BAGIT_CONTENT.decode().splitlines():
        assert f"`{line}`" in TEXT
    named = set(re.findall(r"`(mlflow\.exim\.\w+)`", section("provenance-tags")))
    assert {name for tag in named for name in provenance.names_of(tag)} == provenance.TAGS
    counted = {
        "experiment",
        "run",
        "metric_history",
        "artifact",
        "registered_model",
        "model_version",
    }
    assert counted <= {kind.value for kind in Kind}
    assert all(f"`{kind}`" in section("count-law") for kind in counted)
