"""SHA-256 in pieces is SHA-256."""

from __future__ import annotations

import hashlib

import pytest

from mlflow_exim_plugin.schema.digests import sha256_of


@pytest.mark.parametrize("size_bytes", [0, 1, 2046, 2047, 2048, 4094, 4095, 32 << 10, 33 << 10])
def test_pieces_make_no_difference(size_bytes: int) -> None:
    data = bytes(n * 7 % 251 for n in range(size_bytes))
    assert sha256_of(data).digest() == hashlib.sha256(data).digest()
