"""Detectors: where in a text a secret or personal data stands.

What has a format of its own is found, and what is said to be secret. Nothing is guessed by entropy:
most of what MLflow writes, ids, digests and model weights, looks random.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Place = tuple[int, int]
    """Where a finding begins and ends in a text."""
    Finder = Callable[[str], Iterator[Place]]

__all__ = ["DETECTORS", "is_secret_name", "span_of"]

_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}(?![0-9A-Za-z])"  # AWS
    r"|AIza[\w-]{35}|GOCSPX-[\w-]{28}|ya29\.[\w-]{20,}"  # Google
    r"|dapi[0-9a-f]{32}(?:-\d)?|dose[0-9a-f]{32}"  # Databricks
    r"|hf_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|sk-(?:ant-|proj-|or-|lf-|svcacct-)?[\w-]{20,}"  # OpenAI, Anthropic and their like
    r"|(?:gsk|r8|xai|pplx|nvapi|lsv2|tvly)[-_][\w-]{32,}"  # Groq, Replicate, xAI, Nvidia, LangSmith
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}"
    r"|gl(?:pat|dt|ft|rt|soat|cbt|ptt|agent|oas)-[\w-]{20,}"  # GitLab
    r"|xox[abeoprs]-[\w-]{10,}|xapp-[\w-]{20,}"  # Slack
    r"|[rs]k_(?:live|test)_[0-9a-zA-Z]{20,}|sq0[a-z]{3}-[\w-]{22,}"  # Stripe, Square
    r"|SG\.[\w-]{22}\.[\w-]{43}|[0-9a-f]{32}-us\d{1,2}(?!\w)"  # SendGrid, Mailchimp
    r"|(?:AC|SK)[0-9a-f]{32}(?!\w)|\d{8,10}:AA[\w-]{33}(?!\w)"  # Twilio, Telegram
    r"|pypi-[\w-]{70,}|npm_[A-Za-z0-9]{36}|dckr_pat_[\w-]{20,}|glsa_\w{32,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"  # JSON Web Token
    r")|AccountKey=([A-Za-z0-9+/=]{86,88})"  # Azure
    r"|hooks\.slack\.com/services/(T\w+/B\w+/\w+)"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:[^-]|-(?!----)){0,100000}(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?"
)
_WORDS = (
    "passwd",
    "password",
    "passphrase",
    "pwd",
    "secret",
    "credential",
    "authorization",
    "cookie",
)
_KEYS = ("api", "access", "account", "private", "secret", "encryption", "signing", "shared")
_TOKENS = (
    *("access", "api", "auth", "bearer", "bot", "gh", "github", "gitlab", "hf", "hub", "id"),
    *("refresh", "session", "user"),
)
_SECRET = (
    rf"(?:(?:{'|'.join(_WORDS)})s?|(?:{'|'.join(_KEYS)})[_-]?key|(?:{'|'.join(_TOKENS)})[_-]?token)"
)
_SAYING = (
    *_WORDS,
    *(f"{of}{dash}key" for of in _KEYS for dash in ("", "_", "-")),
    *(f"{of}{dash}token" for of in _TOKENS for dash in ("", "_", "-")),
)
# Not what merely has the word in it: models have tokenizers, a pad_token and max_tokens.
_NAME = re.compile(rf"token|.{{0,200}}{_SECRET}", re.IGNORECASE | re.DOTALL)
_VALUE = r"(?![*$<%]|(?:none|null|true|false)\b)[^\s'\"&;,<>{}\\]{4,}"
_SAID = re.compile(
    rf"{_SECRET}['\"]?[ \t]{{0,4}}[:=][ \t]{{0,4}}['\"]?(?:(?:bearer|basic|token) {{1,4}})?"
    rf"({_VALUE})",
)
_IN_URL = re.compile(r"://[^\s/:@'\"<>]{0,128}:([^\s/'\"<>]{1,256})@")
_BEARER = re.compile(r"(?:bearer|basic) {1,4}([\w.~+/=-]{16,})")
_EMAIL = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64}(?:@|%40)(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?\.){1,8}"
    r"[A-Za-z]{2,24}(?![\w-])"
)
_CARD = re.compile(r"(?<![\w.+-])[2-6]\d{3}(?:[ -]?\d{2,6}){2,4}(?![\w-]|\.\d)")
_CARD_DIGITS = range(13, 20)


def is_secret_name(name: str) -> bool:
    """Whether a key, such as ``aws.secret_key`` or ``PASSWORD``, says that its value is secret."""
    return bool(_NAME.fullmatch(name))


def span_of(found: re.Match[str]) -> Place:
    """Return where what is meant stands: the group of a pattern that has one."""
    return found.span(found.lastindex or 0)


def _of(*patterns: re.Pattern[str]) -> Finder:
    return lambda text: (span_of(found) for of in patterns for found in of.finditer(text))


def _passwords(text: str) -> Iterator[Place]:
    lower = _lower(text)  # without regard to case an expression takes five times as long
    if any(word in lower for word in _SAYING):
        yield from _of(_SAID)(lower)
    if "bearer " in lower or "basic " in lower:
        yield from _of(_BEARER)(lower)
    if "://" in text:
        yield from _of(_IN_URL)(text)


def _lower(text: str) -> str:
    """Return a text in lower case, each character where it was."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def _emails(text: str) -> Iterator[Place]:
    if "@" in text or "%40" in text:
        yield from (found.span() for found in _EMAIL.finditer(text))


def _cards(text: str) -> Iterator[Place]:
    for found in _CARD.finditer(text):
        digits = [int(digit) for digit in found.group() if digit not in " -"]
        if len(digits) in _CARD_DIGITS and len(set(digits)) > 1 and _is_luhn(digits):
            yield found.span()


def _is_luhn(digits: list[int]) -> bool:
    doubled = (2 * digit for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(d - 9 if d > 9 else d for d in doubled)) % 10 == 0


DETECTORS: dict[str, Finder] = {
    "token": _of(_TOKEN),
    "private-key": _of(_PRIVATE_KEY),
    "password": _passwords,
    "email": _emails,
    "card": _cards,
}
"""What finds, by its name: tokens and keys of providers; whole private keys; passwords in URLs,
headers and settings; e-mail addresses; numbers of payment cards, whose check digit is right."""
