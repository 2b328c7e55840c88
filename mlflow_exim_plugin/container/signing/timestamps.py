"""When something was signed, as an authority says it (RFC 3161)."""

from __future__ import annotations

import contextlib
import hashlib
from datetime import timezone
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.signing.statements import refuse_signature
from mlflow_exim_plugin.errors import (
    MissingDependencyError,
    ServerError,
    SignatureError,
    UsageError,
)
from mlflow_exim_plugin.redaction import redact_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rfc3161_client import TimeStampRequest

__all__ = ["MAX_ANSWER_BYTES", "TIMESTAMP_SUFFIX", "Authority", "timestamp"]

TIMESTAMP_SUFFIX = ".tsr"
MAX_ANSWER_BYTES = 1 << 20
_PATIENCE_S = 30


class Authority:
    """Whose timestamps are believed.

    Args:
        certificates: In PEM: roots, and those between where an answer does not bring them.

    Raises:
        MissingDependencyError: rfc3161-client is not installed.
        UsageError: They are no certificates.
    """

    def __init__(self, certificates: bytes) -> None:
        with _client():
            from cryptography.x509 import load_pem_x509_certificates
            from rfc3161_client import VerifierBuilder
        try:
            roots = load_pem_x509_certificates(certificates)
        except ValueError as error:
            raise UsageError(f"these are no certificates in PEM: {error}") from error
        self._verifier = VerifierBuilder(roots=roots).build()

    def time_of(self, name: str, data: bytes, answer: bytes | None) -> str:
        """Return when a signature file was there, as the authority says.

        Args:
            name: Of the file.
            data: Its bytes.
            answer: Of the authority; None where there is none beside it.

        Raises:
            SignatureError: S008.
        """
        from rfc3161_client import VerificationError, decode_timestamp_response

        if answer is None:
            raise refuse_signature("S008", name, "has no timestamp beside it")
        try:
            told = decode_timestamp_response(answer)
            self._verifier.verify_message(told, data)
            moment = told.tst_info.gen_time
        except (ValueError, VerificationError) as error:
            message = f"has a timestamp that is not the authority's, of this file: {error}"
            raise refuse_signature("S008", name, message) from error
        return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


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
    with _client():
        from rfc3161_client import HashAlgorithm, TimestampRequestBuilder
    asked = TimestampRequestBuilder().data(data).hash_algorithm(HashAlgorithm.SHA256).build()
    answer = _answer(asked.as_bytes(), url)
    if problem := _problem(answer, asked, hashlib.sha256(data).digest()):
        raise SignatureError(f"{redact_url(url)} gives no timestamp: {problem}")
    return answer


@contextlib.contextmanager
def _client() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        hint = "pip install 'mlflow-exim-plugin[sign]'"
        raise MissingDependencyError(f"timestamps need rfc3161-client: {error}", hint) from error


def _answer(question: bytes, url: str) -> bytes:
    import requests

    headers = {"Content-Type": "application/timestamp-query"}
    try:
        with requests.post(
            url, question, headers=headers, timeout=_PATIENCE_S, stream=True
        ) as response:
            response.raise_for_status()
            return response.raw.read(MAX_ANSWER_BYTES, decode_content=True) or b""
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
