"""Canonical JSON: the fast encoder and Python's own say the same of every value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_exim_plugin.schema.canonical import canonical_bytes, document_bytes, parse_json

pytestmark = pytest.mark.property

texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
)


def by_python(value: Any) -> bytes:
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


@given(values)
def test_canonical_form_is_that_of_python(value: Any) -> None:
    assert canonical_bytes(value) == by_python(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_double_has_pythons_digits(number: float) -> None:
    assert canonical_bytes({"n": number}) == by_python({"n": number})


@given(values)
def test_what_is_stored_is_read_back(value: Any) -> None:
    data = document_bytes(value)
    assert by_python(parse_json(data, "x")) == by_python(value)
    assert by_python(json.loads(data)) == by_python(value)
