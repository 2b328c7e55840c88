"""What of a URL, a header or any text may be shown: whatever leaves us goes through here."""

from __future__ import annotations

import re

__all__ = ["conceal", "redact", "redact_text", "redact_url", "writable"]

# Each looks first whether a word ends as it must: a text of a hostile source may be one long word.
_URL = re.compile(r"(?<![\w+.-])[\w+.-]+://[^\s'\"<>]+")
_DATABASE = re.compile(r"(?:postgres|mysql|maria|mssql|oracle)")
_VALUE = r"(?:(?!::)[^\s&#;'\"])*"
_QUERY = re.compile(rf"([?&;](?!versionId=)[^=&?;\s]+=){_VALUE}")
_NAMED = (
    r"[\w.-]*(?:token(?!s)|signature|\bsig\b|secret|passw|passphrase|\bpwd\b|credential"
    r"|authori[sz]ation|(?:api|access|account)[-_]?key|\bsas\b|cookie)[\w.-]*"
)
_SECRET_IN_QUERY = re.compile(rf"([?&;](?=[\w.-]+=){_NAMED}=){_VALUE}", re.IGNORECASE)
_SECRET_SAID = re.compile(
    rf"(?<![?&;\w.-])((?=[\w.-]+=){_NAMED}=)(?:'[^']*'|\"[^\"]*\"|{_VALUE})", re.IGNORECASE
)
_SECRET_IN_DICT = re.compile(
    rf"""((['"])(?=[\w.-]+\2\s*:){_NAMED}\2\s*:\s*(?:b?(['"])))(?:\\.|(?!\3).)*(?=\3)""",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"((?:proxy-)?authorization\s*[:=]\s*|\b(?:bearer|basic)\s+(?=[\w.~+/=-]{8,}))"
    r"(?:aws4-hmac-sha256[^\r\n'\"]*|(?:(?:bearer|basic|token|digest)\s+)?[^\s,;'\"]+)",
    re.IGNORECASE,
)
_BYTE_OF_NAME = re.compile(r"\\udc([89a-f][0-9a-f])")
"""How Python has a byte of a name that is no UTF-8, once it was escaped."""

_concealed: set[str] = set()


def conceal(url: str) -> None:
    """Remember the user and password of a URL: libraries that read it otherwise quote parts of it.

    Of ``u:p@ss@host`` one says that there is no host ``ss@host``.
    """
    for part in url.split("::"):
        shown = _without_user(part)
        if shown != part:
            user = part[: len(part) - len(shown.partition("***")[2])].partition("://")[2]
            _concealed.update(rf"(?<!\w){re.escape(p)}@" for p in re.split("[:@]", user)[1:] if p)


def redact_url(url: str) -> str:
    """Return a URL that may be shown: no user, no password, no values in its query.

    Presigned URLs carry their secret in the query. ``versionId`` is no secret and stays. A local
    path comes back as it is.
    """
    if "://" not in url:
        return url
    shown = "::".join(map(_without_user, url.split("::")))
    return _QUERY.sub(r"\1***", shown)


def _without_user(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    # A password may hold what ends an authority, and then no port is behind the colon.
    port = authority.rpartition(":")[2] if ":" in authority else ""
    is_cut = bool(port) and not port.isdecimal() and not authority.startswith("[")
    if _DATABASE.match(scheme) or (is_cut and "@" not in authority):
        authority = rest
    if "@" not in authority:
        return url
    return f"{scheme}{separator}***@{rest[authority.rindex('@') + 1 :]}"


def redact(text: str, url: str = "") -> str:
    """Return a text without what is secret in URLs, headers and settings.

    Args:
        text: Of any lines, such as a traceback or what a library says of an error.
        url: One that is known to be in it, whatever characters it has.
    """
    if url:
        text = text.replace(url, redact_url(url))
    text = _URL.sub(lambda found: redact_url(found.group()), text)
    for secret in _concealed:
        text = re.sub(secret, "***@", text)
    text = _HEADER.sub(r"\1***", text)
    text = _SECRET_IN_DICT.sub(r"\1***", text)
    text = _SECRET_SAID.sub(r"\1***", text)
    return _SECRET_IN_QUERY.sub(r"\1***", text)


def writable(text: str) -> str:
    """Return a text that UTF-8 can hold: what is none, as in some names of files, is escaped."""
    try:
        text.encode()
    except UnicodeEncodeError:
        escaped = text.encode(errors="backslashreplace").decode()
        return _BYTE_OF_NAME.sub(r"\\x\1", escaped)
    return text


def redact_text(text: str, url: str = "") -> str:
    """Return what ``redact`` does as one line."""
    return redact(" ".join(text.split()), url)
