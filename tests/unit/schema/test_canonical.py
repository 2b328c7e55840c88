"""JSON: what is refused, what is stored, what is hashed."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest

from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema import canonical
from mlflow_exim_plugin.schema.canonical import (
    canonical_bytes,
    content_digest,
    document_bytes,
    parse_json,
)
from mlflow_exim_plugin.schema.rules import LIMITS, Limits


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": 1, "a": 1}',
        b'{"deep": [{"a": 1, "b": 2, "a": 3}]}',
        b"NaN",
        b'{"a": Infinity}',
        b"[-Infinity]",
        b'{"a": 1e999}',
        b"[-1e400]",
        b'{"a": "\\ud800"}',
        b'{"\\uDfff": 1}',
        b"1" * 5000,
        b"[" * 5000 + b"]" * 5000,
        b"[" * (LIMITS.depth + 1) + b"]" * (LIMITS.depth + 1),
        b'{"a":' * (LIMITS.depth + 1) + b"1" + b"}" * (LIMITS.depth + 1),
    ],
)
def test_what_json_leaves_open_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArchiveError) as caught:
        parse_json(data, "data/x.json")
    assert [finding.code for finding in caught.value.findings] == ["E050"]
    assert "data/x.json" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"1e308", 1e308),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
        (b'"\\ud83d\\ude80"', "\U0001f680"),
        (b'"\\\\ud800"', "\\ud800"),
        (b"null", None),
    ],
)
def test_what_json_means_is_kept(data: bytes, value: Any) -> None:
    assert parse_json(data, "x") == value


def test_the_deepest_allowed_document_is_parsed() -> None:
    value = parse_json(b"[" * LIMITS.depth + b"]" * LIMITS.depth, "x")
    assert str(value) == "[" * LIMITS.depth + "]" * LIMITS.depth


def test_large_documents_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(InvalidArchiveError, match="over the limit"):
        parse_json(b"not even JSON", "x", Limits(document_bytes=10))


def test_stored_documents_are_json_even_of_nan() -> None:
    data = document_bytes({"é": math.nan, "i": -math.inf, "n": None})
    assert data.endswith(b"}\n")
    assert json.loads(data) == {"é": "NaN", "i": "-Infinity", "n": None}
    assert "é".encode() in data


def test_what_no_reader_would_take_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    deepest = json.loads("[" * LIMITS.depth + "]" * LIMITS.depth)
    assert parse_json(document_bytes(deepest), "x") == deepest
    with pytest.raises(InvalidArchiveError, match="levels"):
        document_bytes([deepest])
    monkeypatch.setattr(canonical, "LIMITS", Limits(document_bytes=10))
    assert len(document_bytes("1234567")) == 10
    with pytest.raises(InvalidArchiveError, match="over the limit"):
        document_bytes("12345678")


@pytest.mark.parametrize("number", [0.1, 1.0, -0.0, 1e16, 1e15, 5e-324, 1.7976931348623157e308])
def test_stored_doubles_hash_like_the_original(number: float) -> None:
    read = parse_json(document_bytes({"n": number}), "x")
    assert canonical_bytes(read) == canonical_bytes({"n": number})


def test_canonical_form_does_not_depend_on_layout_or_order() -> None:
    one = json.loads('{"b": [1, 2.0], "a": {"y": "\\u00e9", "x": null}}')
    other = json.loads('{"a":{"x":null,"y":"é"},"b":[1,2.0]}')
    assert canonical_bytes(one) == canonical_bytes(other)
    assert canonical_bytes(one) == '{"a":{"x":null,"y":"é"},"b":[1,2.0]}'.encode()


def test_canonical_form_tells_integers_from_doubles_and_nothing_from_null() -> None:
    forms = [{"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {}]
    assert len({canonical_bytes(form) for form in forms}) == len(forms)


def test_canonical_form_has_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_bytes({"a": math.nan})


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, "\ud800"])
def test_what_json_does_not_have_is_one_kind_of_error(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical_bytes({"a": value})


def test_content_digest_covers_document_rows_and_artifacts() -> None:
    document = {"run": {"info": {"run_id": "r"}}}
    artifact = ("a.txt", 1, "0" * 64)
    digests = {
        content_digest(document),
        content_digest({"run": {"info": {"run_id": "s"}}}),
        content_digest(document, "sha256:" + "0" * 64),
        content_digest(document, None, [artifact]),
        content_digest(document, None, [("b.txt", *artifact[1:])]),
        content_digest(document, None, [("a.txt", 2, "0" * 64)]),
        content_digest(document, None, [("a.txt", 1, "1" * 64)]),
    }
    assert len(digests) == 7


def test_content_digest_does_not_depend_on_the_order_of_artifacts() -> None:
    listed = [("b", 1, "0" * 64), ("a/c", 2, "1" * 64), ("a", 3, "2" * 64)]
    assert content_digest({}, None, listed) == content_digest({}, None, reversed(listed))


def test_content_digest_is_sha256_of_the_canonical_form() -> None:
    wanted = hashlib.sha256(b'{"mlflow":{"a":1}}').hexdigest()
    assert content_digest({"a": 1}) == f"sha256:{wanted}"


@pytest.mark.parametrize("number", [2**64, -(2**80)])
def test_numbers_of_more_than_64_bits_are_kept(number: int) -> None:
    document = {"n": [number, None]}
    assert parse_json(document_bytes(document), "x") == document
    assert canonical_bytes(document) == f'{{"n":[{number},null]}}'.encode()
