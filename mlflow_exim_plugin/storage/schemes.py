"""What is known of the stores behind each scheme of URLs, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Publication", "Scheme", "is_far", "publication_of", "scheme_of"]


class Publication(Enum):
    """How a file that is written gets its name, so that it is complete there or not there."""

    LINK = "written under another name beside, which is linked or renamed to the final one"
    COMMIT = "an object that appears whole when it is closed, and never before"
    MOVE = "written under another name, and moved to the final one"


@dataclass(frozen=True)
class Scheme:
    """What is known of the stores behind one scheme.

    Attributes:
        name: Before ``://``; empty for a plain path.
        extra: The extra of this package that brings the file system; empty where it needs none.
        publication: How a file gets its name.
        opens_artifacts: Whether fsspec opens what MLflow keeps there, by the same URLs and with
            the same credentials.
    """

    name: str
    extra: str = ""
    publication: Publication = Publication.MOVE
    opens_artifacts: bool = False

    @property
    def is_local(self) -> bool:
        """Whether they are of this machine's file system."""
        return self.publication is Publication.LINK

    @property
    def package(self) -> str:
        """What pip installs to have the file system."""
        return f"mlflow-exim-plugin[{self.extra}]" if self.extra else self.name


_SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("", publication=Publication.LINK),
        Scheme("file", publication=Publication.LINK),
        Scheme("local", publication=Publication.LINK),
        Scheme("memory", opens_artifacts=True),
        Scheme("s3", "s3", Publication.COMMIT, opens_artifacts=True),
        Scheme("s3a", "s3", Publication.COMMIT),
        Scheme("gs", "gcs", Publication.COMMIT, opens_artifacts=True),
        Scheme("gcs", "gcs", Publication.COMMIT),
        Scheme("abfs", "azure", Publication.COMMIT, opens_artifacts=True),
        Scheme("abfss", "azure", Publication.COMMIT, opens_artifacts=True),
        Scheme("az", "azure", Publication.COMMIT),
        Scheme("adl", "azure"),
        Scheme("dbfs"),
        Scheme("sftp", "sftp"),
        Scheme("ssh", "sftp"),
    )
}


def scheme_of(url: str) -> Scheme:
    """Return what is known of the store behind a URL, of a chain the innermost one."""
    innermost = url.rpartition("::")[2]
    name = innermost.partition("://")[0] if "://" in innermost else ""
    return _SCHEMES.get(name, Scheme(name))


def is_far(url: str) -> bool:
    """Whether a URL is of a store that is known here, and not of this machine."""
    scheme = scheme_of(url)
    return "::" in url or (scheme.name in _SCHEMES and not scheme.is_local)


def publication_of(protocols: str | Iterable[str]) -> Publication:
    """Return how a file gets its name in a file system that fsspec gives these protocols."""
    names = [protocols] if isinstance(protocols, str) else protocols
    known = (_SCHEMES[name].publication for name in names if name in _SCHEMES)
    return next(known, Publication.MOVE)
