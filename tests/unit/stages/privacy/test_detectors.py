"""What is a secret is found whole, what only looks like one is left, and none takes long."""

from __future__ import annotations

import time

import pytest

from mlflow_exim_plugin.stages.privacy.detectors import DETECTORS, is_secret_name

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIabc+/=\n-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THs"


def found(detector: str, text: str) -> list[str]:
    return [text[begin:end] for begin, end in DETECTORS[detector](text)]


@pytest.mark.parametrize(
    ("detector", "before", "secret", "after"),
    [
        ("token", "id=", "AKIAIOSFODNN7EXAMPLE", ", region"),
        ("token", "(", "ghp_" + "a1B2" * 9, ")"),
        ("token", "use ", "github_pat_" + "a1B2_" * 10, " now"),
        ("token", "", "hf_" + "aB3" * 11, ""),
        ("token", "DATABRICKS_TOKEN=", "dapi" + "0af1" * 8, "\n"),
        ("token", '"', "sk-proj-" + "aB3_" * 10, '"'),
        ("token", "key: ", "AIza" + "aB3-_" * 7, ""),
        ("token", "Cookie: ", JWT, ";"),
        ("token", "", "xoxb-" + "1234567890-abc", " x"),
        ("token", "AccountKey=", "aB3+" * 21 + "aB==", ";Endpoint"),
        ("private-key", "see ", KEY, " end"),
        ("private-key", '{"k": "', KEY.replace("\n", "\\n"), '"}'),
        ("password", "postgresql://mlflow:", "s3cr@t", "@db:5432/mlflow"),
        ("password", "DB_PASSWORD=", "hunter22", " python train.py"),
        ("password", "İİİ Password: ", "Hunter22", " x"),
        ("password", "api_key: '", "abcd1234", "'"),
        ("password", "curl -H 'X: bearer ", "abcdef1234567890zz", "'"),
        ("email", "by ", "bob.smith+ml@mail.example.co.uk", "."),
        ("email", "<", "анна@example.org", ">"),
        ("email", "?user=", "bob%40example.com", "&x"),
        ("card", "card ", "4111 1111 1111 1111", "!"),
        ("card", "", "5500-0055-5555-5559", ""),
        ("card", "amex ", "378282246310005", "."),
    ],
)
def test_a_secret_is_found_whole(detector: str, before: str, secret: str, after: str) -> None:
    assert found(detector, before + secret + after) == [secret]


@pytest.mark.parametrize(
    "text",
    [
        "a1b2c3d4e5f60718293a4b5c6d7e8f90",
        "m-a5233d82c61940609ab0c38f014155dc",
        "sha256:" + "0af1" * 16,
        "0.4111111111111111",
        "4111111111111112",
        "1700000000000000000",
        "0000000000000000",
        "tokenizer=bert-base-uncased max_tokens=1000 pad_token='[PAD]'",
        "password=*** token=${TOKEN} secret=None",
        "models:/m-abc@champion",
        "https://host:5000/path@v2",
        "git@github",
        "task-oriented-dialogue-systems-with-long-names",
    ],
)
def test_what_mlflow_writes_is_no_secret(text: str) -> None:
    assert {name: found(name, text) for name in DETECTORS if found(name, text)} == {}


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        *((name, True) for name in ("password", "aws.secret_key", "HF_TOKEN", "apiKey", "token")),
        *((name, False) for name in ("tokenizer", "pad_token", "max_tokens", "key", "n_secrets_x")),
    ],
)
def test_names_say_what_is_secret(name: str, *, is_secret: bool) -> None:
    assert is_secret_name(name) is is_secret


@pytest.mark.parametrize(
    "part",
    ["a", "a.", "@a", "1 ", "4111 ", "-----BEGIN PRIVATE KEY-----", "-", "password=", "secret"],
)
@pytest.mark.parametrize("detector", DETECTORS)
def test_no_text_takes_long(detector: str, part: str) -> None:
    text = part * (200_000 // len(part))
    before = time.process_time()

    found(detector, text)

    assert time.process_time() - before < 1
