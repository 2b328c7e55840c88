"""What is known of the stores behind each scheme of URLs, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Objects",
    "Publication",
    "Scheme",
    "is_far",
    "publication_of",
    "reader_of",
    "scheme_of",
    "stores",
]


class Publication(Enum):
    """How a file that is written gets its name, so that it is complete there or not there."""

    LINK = "written under another name beside, which is linked or renamed to the final one"
    PARTS_OF_S3 = "parts that one call makes an object, unless there is one"
    BLOCKS_OF_AZURE = "blocks that one call makes a blob, unless there is one"
    COMMIT = "an object that appears whole when fsspec's file is closed, and never before"
    RENAME_OF_SSH = "written under another name, which SSH's server renames"
    MOVE_OF_WEBDAV = "written under another name, which WebDAV's MOVE renames"
    RENAME = "written under another name, which fsspec's file system renames"


class Objects(Enum):
    """Which service of objects lies behind a scheme, as obstore knows it."""

    S3 = "Amazon's S3 and its like"
    GOOGLE = "Google Cloud Storage"
    AZURE = "Azure's blobs"


@dataclass(frozen=True)
class Scheme:
    """What is known of the stores behind one scheme.

    Attributes:
        name: Before ``://``; empty for a plain path.
        extra: The extra of this package that brings the file system; empty where it needs none.
        publication: How a file gets its name; None where it depends on whether fsspec's file
            system renames.
        reader: Module and class that ask its client for ranges of one version of a file; empty
            where there is no more than fsspec's file system.
        opens_artifacts: Whether fsspec opens what MLflow keeps there, by the same URLs and with
            the same credentials.
        may_be_server: Whether a server of MLflow has URLs like that too.
        objects: Which service of objects it is; None where it is none.
    """

    name: str
    extra: str = ""
    publication: Publication | None = None
    reader: str = ""
    opens_artifacts: bool = False
    may_be_server: bool = False
    objects: Objects | None = None

    @property
    def is_local(self) -> bool:
        """Whether they are of this machine's file system."""
        return self.publication is Publication.LINK

    @property
    def package(self) -> str:
        """What pip installs to have the file system."""
        return f"mlflow-exim-plugin[{self.extra}]" if self.extra else self.name


_S3, _GOOGLE, _AZURE = (f"bucket_ranges.{name}Source" for name in ("S3", "Google", "Azure"))
_SSH, _WEBDAV, _HTTP = "ssh_ranges.SshSource", "web_ranges.WebdavSource", "web_ranges.HttpSource"
_SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("", publication=Publication.LINK),
        Scheme("file", publication=Publication.LINK),
        Scheme("local", publication=Publication.LINK),
        Scheme("memory", publication=Publication.RENAME, opens_artifacts=True),
        Scheme("s3", "s3", Publication.PARTS_OF_S3, _S3, opens_artifacts=True, objects=Objects.S3),
        Scheme("s3a", "s3", Publication.PARTS_OF_S3, _S3),
        Scheme(
            "gs", "gcs", Publication.COMMIT, _GOOGLE, opens_artifacts=True, objects=Objects.GOOGLE
        ),
        Scheme("gcs", "gcs", Publication.COMMIT, _GOOGLE),
        Scheme(
            "abfs",
            "azure",
            Publication.BLOCKS_OF_AZURE,
            _AZURE,
            opens_artifacts=True,
            objects=Objects.AZURE,
        ),
        Scheme(
            "abfss",
            "azure",
            Publication.BLOCKS_OF_AZURE,
            _AZURE,
            opens_artifacts=True,
            objects=Objects.AZURE,
        ),
        Scheme("wasb", "azure", objects=Objects.AZURE),
        Scheme("wasbs", "azure", objects=Objects.AZURE),
        Scheme("az", "azure", Publication.BLOCKS_OF_AZURE, _AZURE),
        Scheme("adl", "azure"),
        Scheme("dbfs"),
        Scheme("sftp", "sftp", Publication.RENAME_OF_SSH, _SSH),
        Scheme("ssh", "sftp", Publication.RENAME_OF_SSH, _SSH),
        Scheme("ftp", reader="file_servers.ftp_ranges.FtpSource"),
        Scheme("hdfs"),
        Scheme("viewfs"),
        Scheme("webdav", "webdav", Publication.MOVE_OF_WEBDAV, _WEBDAV),
        Scheme("dav", "webdav", Publication.MOVE_OF_WEBDAV, _WEBDAV),
        Scheme("http", "http", reader=_HTTP, may_be_server=True),
        Scheme("https", "http", reader=_HTTP, may_be_server=True),
    )
}


def scheme_of(url: str) -> Scheme:
    """Return what is known of the store behind a URL, of a chain the innermost one."""
    innermost = url.rpartition("::")[2]
    name = innermost.partition("://")[0] if "://" in innermost else ""
    return _SCHEMES.get(name, Scheme(name))


def is_far(url: str) -> bool:
    """Whether a URL is of a store that is known here, and not of this machine or a server."""
    scheme = scheme_of(url)
    is_known = scheme.name in _SCHEMES and not scheme.may_be_server
    return "::" in url or (is_known and not scheme.is_local)


def stores() -> list[str]:
    """Return the schemes of all stores that are known here."""
    return [name for name in _SCHEMES if name]


def publication_of(protocols: str | Iterable[str]) -> Publication | None:
    """Return how a file gets its name in a file system that fsspec gives these protocols.

    None: that depends on whether the file system renames.
    """
    known = _known(protocols)
    return known.publication if known else None


def reader_of(protocols: str | Iterable[str]) -> str:
    """Return what reads ranges in a file system that fsspec gives these protocols, see `Scheme`."""
    known = _known(protocols)
    return known.reader if known else ""


def _known(protocols: str | Iterable[str]) -> Scheme | None:
    names = [protocols] if isinstance(protocols, str) else protocols
    return next((_SCHEMES[name] for name in names if name in _SCHEMES), None)
