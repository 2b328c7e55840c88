"""Manifests are read in pieces, and say the same as in one."""

from __future__ import annotations

import hashlib
import random

import pytest

from mlflow_exim_plugin.container import bag
from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema.rules import LIMITS_VARIABLE
from tests.unit.container.crafting import build, codes_of

chance = random.Random(4)
DIGESTS = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(60)]
PATHS = ["data/" + "\u00e9" * (n % 40) + f"{n:03}" for n in range(60)]
LINES = [f"{digest}  {path}\n".encode() for digest, path in zip(DIGESTS, PATHS, strict=True)]
WHOLE = b"".join(line for _, line in sorted(zip(PATHS, LINES, strict=True)))


def outcome(content: bytes) -> object:
    try:
        return bag.parse_manifest(content, "m")
    except InvalidArchiveError as error:
        return [finding.code for finding in error.findings]


@pytest.mark.parametrize("piece_bytes", [1, 67, 200, 1000])
def test_pieces_say_what_the_whole_says(piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bent = [WHOLE, b"", WHOLE[:-1], WHOLE + LINES[0], b"\n" + WHOLE, WHOLE.replace(b"  ", b" ", 1)]
    bent += [WHOLE + b"\xff\n", b"x" + WHOLE + b"\xff"]
    for _ in range(60):
        at = chance.randrange(len(WHOLE))
        bent.append(WHOLE[:at] + chance.randbytes(chance.randrange(3)) + WHOLE[at + 1 :])
    wanted = [outcome(content) for content in bent]
    monkeypatch.setattr(bag, "_PIECE_BYTES", piece_bytes)
    assert [outcome(content) for content in bent] == wanted
    assert isinstance(wanted[0], bag.Manifest)
    assert {"E009", "E028"} <= {
        code for found in wanted if isinstance(found, list) for code in found
    }


def test_a_manifest_that_is_made_of_few_bytes_is_refused_unread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = build({f"data/{n}": b"" for n in range(4000)})
    filled = build({f"data/{n}": chance.randbytes(64) for n in range(4000)})
    assert codes_of(empty) == codes_of(filled) == set()
    monkeypatch.setenv(LIMITS_VARIABLE, "free_bytes=10000 text_expansion=4")
    assert codes_of(empty) == {"E065"}
    assert codes_of(filled) == set()
