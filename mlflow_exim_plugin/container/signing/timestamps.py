"""When something was signed, as an authority says it (RFC 3161)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import MissingDependencyError, ServerError, SignatureError
from mlflow_exim_plugin.redaction import redact_url

if TYPE_CHECKING:
    from rfc3161_client import TimeStampRequest

__all__ = ["TIMESTAMP_SUFFIX", "timestamp"]

TIMESTAMP_SUFFIX = ".tsr"
_MAX_ANSWER_BYTES = 1 << 20
_PATIENCE_S = 30


def timestamp(data: bytes, url: str) -> bytes:
    """Return what an authority answers about some bytes, as ``openssl ts -verify`` takes it.

    Whether the authority is to be believed is for whoever verifies.

    Args:
        data: The bytes.
        url: Of the authority.

    Raises:
        MissingDependencyError: rfc3161-client is not installed.
        ServerError: It does not answer.
        SignatureError: It refuses, or speaks of something else.
    """
    try:
        from rfc3161_client import HashAlgorithm, TimestampRequestBuilder
    except ImportError as error:
        hint = "pip install 'mlflow-exim-plugin[sign]'"
        raise MissingDependencyError(f"timestamps need rfc3161-client: {error}", hint) from error
    asked = TimestampRequestBuilder().data(data).hash_algorithm(HashAlgorithm.SHA256).build()
    answer = _answer(asked.as_bytes(), url)
    if problem := _problem(answer, asked, hashlib.sha256(data).digest()):
        raise SignatureError(f"{redact_url(url)} gives no timestamp: {problem}")
    return answer


def _answer(question: bytes, url: str) -> bytes:
    import requests

    headers = {"Content-Type": "application/timestamp-query"}
    try:
        with requests.post(
            url, question, headers=headers, timeout=_PATIENCE_S, stream=True
        ) as response:
            response.raise_for_status()
            return response.raw.read(_MAX_ANSWER_BYTES, decode_content=True) or b""
    except (requests.RequestException, OSError) as error:
        raise ServerError(f"{redact_url(url)} gives no timestamp: {error}") from error


def _problem(answer: bytes, asked: TimeStampRequest, digest: bytes) -> str:
    from rfc3161_client import PKIStatus, decode_timestamp_response

    try:
        told = decode_timestamp_response(answer)
        if told.status not in {PKIStatus.GRANTED, PKIStatus.GRANTED_WITH_MODS}:
            return " ".join(["it refuses", *told.status_string])
        info = told.tst_info
        is_of_this = info.message_imprint.message == digest and info.nonce == asked.nonce
    except ValueError as error:
        return f"its answer cannot be read: {error}"
    return "" if is_of_this else "its answer is about something else"
