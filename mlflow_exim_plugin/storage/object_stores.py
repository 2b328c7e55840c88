"""How obstore is set up for a bucket, from what users tell MLflow, fsspec and each cloud's clients.

What obstore cannot be told raises :class:`UnsuitedError`: MLflow's and fsspec's clients are left.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from fsspec.config import conf

from mlflow_exim_plugin.storage.schemes import Objects, scheme_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Credentials = Callable[[], dict[str, Any]]

__all__ = ["OpenedStore", "Place", "UnsuitedError", "open_store", "place_of", "settings"]

_CREDENTIALS_LAST = dt.timedelta(minutes=5)
"""How long obstore keeps what botocore and Google's client give it, which renew it in time."""
_CONNECT_SECONDS = 10
_SILENCE_SECONDS = 60
"""How long a server may send nothing."""
_REQUEST_SECONDS = 3600
_REQUEST_SECONDS_WITHOUT_SILENCE = 300
"""Of an obstore that does not notice silence."""
_RETRIES = 10
_PATIENCE_SECONDS = 120
"""After which nothing is asked again."""
_SETTINGS = ("AWS_", "AZURE_", "FSSPEC_", "GOOGLE_", "MLFLOW_BOTO_", "MLFLOW_EXPERIMENTAL_S3_")
_MORE_SETTINGS = ("MLFLOW_S3_", "STORAGE_EMULATOR_HOST")
_GOOGLE = "https://storage.googleapis.com"
_GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_AZURE_SCOPE = "https://storage.azure.com/.default"
_EMULATED_ACCOUNT = "devstoreaccount1"
_EMULATED_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""Every emulator of Azure has this account with this key."""
_ENCRYPTION = {
    "ServerSideEncryption": "server_side_encryption",
    "SSEKMSKeyId": "sse_kms_key_id",
}
"""Of ``MLFLOW_S3_UPLOAD_EXTRA_ARGS``: as obstore calls it."""
_ATTRIBUTES = {
    "CacheControl": "Cache-Control",
    "ContentDisposition": "Content-Disposition",
    "ContentEncoding": "Content-Encoding",
    "ContentLanguage": "Content-Language",
    "ContentType": "Content-Type",
    "StorageClass": "Storage-Class",
}


class UnsuitedError(Exception):
    """Obstore does not serve a bucket as it is set up."""


@dataclass(frozen=True)
class Place:
    """What the URL of a folder in a bucket says.

    Attributes:
        objects: Whose service it is.
        bucket: Bucket, or Azure's container.
        path: Of the folder, without slashes around it.
        host: Of Azure's account; empty where the URL names none.
    """

    objects: Objects
    bucket: str
    path: str
    host: str = ""


@dataclass(frozen=True)
class OpenedStore:
    """A bucket as obstore has it.

    Attributes:
        store: One of obstore's stores.
        attributes: Of all objects that are written.
        tells_types: Whether objects are told what they are by their names, as MLflow does.
        tells_encodings: Likewise, with how they are compressed.
        refuses: Why nothing can be written by it; empty where it can.
    """

    store: Any
    attributes: Mapping[str, str] = field(default_factory=dict)
    tells_types: bool = False
    tells_encodings: bool = False
    refuses: str = ""


def place_of(url: str, *, or_bucket: bool = False) -> Place | None:
    """Return what the URL of a folder says, as MLflow reads it; None where obstore has no such.

    Args:
        url: Of the folder.
        or_bucket: Whether it may be that of the whole bucket.
    """
    scheme = scheme_of(url)
    parts = urlsplit(url)
    if scheme.objects is None or "::" in url or parts.query or parts.fragment:
        return None
    bucket, at, host = parts.netloc.rpartition("@")
    if not at:
        bucket, host = host, ""
    if scheme.objects is not Objects.AZURE and at:
        return None
    path = parts.path.removeprefix("/").removesuffix("/")
    if scheme.name == "abfss":
        path = unquote(path)
    if bucket and not path and or_bucket:
        return Place(scheme.objects, bucket, "", host)
    # obstore would take a key without its first slash for the one that has it.
    if not bucket or any(segment in {"", ".", ".."} for segment in path.split("/")):
        return None
    return Place(scheme.objects, bucket, path, host)


def settings() -> tuple[object, ...]:
    """Return what a store's set-up is made of: with another one, another store is to be opened."""
    told = [
        (name, value)
        for name, value in os.environ.items()
        if name.startswith(_SETTINGS) or name.startswith(_MORE_SETTINGS)
    ]
    return tuple(sorted(told)), repr([conf.get(name) for name in ("s3", "gs", "gcs", "abfs", "az")])


def open_store(place: Place, given: Mapping[str, Any] | None = None) -> OpenedStore:
    """Open the bucket of a place; asks S3 where a bucket lies, and nobody anything else.

    Args:
        place: In the bucket.
        given: Options of fsspec's file system, where the bucket is set up as that has it, and not
            as MLflow's variables say.

    Raises:
        UnsuitedError: It is set up in a way that obstore does not know.
        Exception: What the clients of the clouds raise where they find no credentials.
    """
    if given is not None:
        if place.objects is not Objects.S3:
            raise UnsuitedError("what fsspec's clients of Google and Azure take is not known here")
        return _s3(place, given)
    opened = {Objects.S3: _s3, Objects.GOOGLE: _google, Objects.AZURE: _azure}[place.objects]
    return opened(place)


_AS_FSSPEC = {
    *("anon", "client_kwargs", "endpoint_url", "key", "profile", "secret", "token"),
    *("listings_expiry_time", "skip_instance_cache", "use_listings_cache"),
}
"""Options of fsspec's client of S3 that are heard here, or make no difference."""


def _s3(place: Place, given: Mapping[str, Any] | None = None) -> OpenedStore:
    import botocore.session

    told = dict(conf.get("s3", {}))
    environ: Mapping[str, str] = os.environ
    if given is not None:
        told |= {**given, **given.get("s3", {})}
        told.pop("s3", None)
        environ = {}
        if unknown := told.keys() - _AS_FSSPEC:
            raise UnsuitedError(f"fsspec's client is told {min(unknown)}")
    more = dict(told.get("client_kwargs", {}))
    version = environ.get("MLFLOW_EXPERIMENTAL_S3_SIGNATURE_VERSION", "s3v4").lower()
    if version not in {"s3v4", "unsigned"} or environ.get("MLFLOW_S3_EXPECTED_BUCKET_OWNER"):
        raise UnsuitedError("it signs otherwise, or names the bucket's owner")
    if ":" in place.bucket or place.bucket.endswith("--x-s3"):
        raise UnsuitedError("the bucket is an access point or of one zone")
    session = botocore.session.Session(profile=told.get("profile"))
    endpoint = (
        environ.get("MLFLOW_S3_ENDPOINT_URL")
        or told.get("endpoint_url")
        or more.get("endpoint_url")
    )
    region = more.get("region_name") or session.get_config_variable("region")
    credentials = _s3_credentials(told, session, is_signed=version == "s3v4")
    client = _s3_client(session, endpoint, region, credentials)
    if not region or _is_amazon(client.meta.endpoint_url):
        region = _region_of(client, place.bucket) or region
        client = _s3_client(session, endpoint, region, credentials)
    endpoint = str(client.meta.endpoint_url)
    config: dict[str, Any] = {"region": client.meta.region_name, "endpoint": endpoint}
    style = environ.get("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE")
    if (style or (client.meta.config.s3 or {}).get("addressing_style")) == "virtual":
        host = urlsplit(endpoint)
        config["endpoint"] = f"{host.scheme}://{place.bucket}.{host.netloc}"
        config["virtual_hosted_style_request"] = True
    writing, attributes, refuses = _uploads() if given is None else ({}, {}, "")
    options = _client_options(endpoint)
    verify = more.get("verify", session.get_config_variable("ca_bundle"))
    if environ.get("MLFLOW_S3_IGNORE_TLS", "").lower() in {"1", "true"} or verify is False:
        options["allow_invalid_certificates"] = True
    elif isinstance(verify, str) and endpoint.startswith("https:"):
        options["root_certificate"] = Path(verify).read_bytes()
    given = {"config": config | writing, "credential_provider": credentials}
    if credentials is None:
        given = {"config": config | writing | {"skip_signature": True}}
    store = _s3_store(place.bucket, given, options)
    return OpenedStore(store, attributes, tells_types=True, tells_encodings=True, refuses=refuses)


def _s3_store(bucket: str, given: dict[str, Any], options: dict[str, Any]) -> Any:
    from obstore.exceptions import UnknownConfigurationKeyError
    from obstore.store import S3Store

    config = dict(given["config"])
    if "AWS_ENDPOINT_URL_S3" in os.environ:
        # Newer ones let this variable decide, whatever else they are told.
        try:
            config["aws_endpoint_url_s3"] = config["endpoint"]
            return _constructed(S3Store, bucket, given | {"config": config}, options)
        except UnknownConfigurationKeyError:
            del config["aws_endpoint_url_s3"]
    return _constructed(S3Store, bucket, given | {"config": config}, options)


def _s3_credentials(
    told: Mapping[str, Any], session: Any, *, is_signed: bool
) -> Credentials | None:
    if told.get("anon") or not is_signed:
        return None
    if told.get("key") and told.get("secret"):
        fixed = {
            "access_key_id": told["key"],
            "secret_access_key": told["secret"],
            "token": told.get("token"),
            "expires_at": None,
        }
        return lambda: fixed
    found = session.get_credentials()
    if found is None:
        raise UnsuitedError("there are no credentials")

    def provide() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": dt.datetime.now(dt.timezone.utc) + _CREDENTIALS_LAST,
        }

    return provide


def _s3_client(
    session: Any, endpoint: str | None, region: str | None, credentials: Credentials | None
) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    known: dict[str, Any] = {"config": Config(signature_version=UNSIGNED)}
    if credentials is not None:
        given = credentials()
        known = {
            "aws_access_key_id": given["access_key_id"],
            "aws_secret_access_key": given["secret_access_key"],
            "aws_session_token": given["token"],
        }
    return session.create_client("s3", endpoint_url=endpoint, region_name=region, **known)


def _region_of(client: Any, bucket: str) -> str | None:
    from botocore.exceptions import ClientError

    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:  # it says so to those too who may not look, or asked elsewhere
        answer = error.response
    headers: dict[str, str] = answer["ResponseMetadata"].get("HTTPHeaders", {})
    return headers.get("x-amz-bucket-region")


def _is_amazon(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _uploads() -> tuple[dict[str, str], dict[str, str], str]:
    """Return how uploads are set up, their attributes, and why MLflow has to make them."""
    told = os.environ.get("MLFLOW_S3_UPLOAD_EXTRA_ARGS")
    extra = json.loads(told) if told else {}
    known = _ENCRYPTION.keys() | _ATTRIBUTES.keys()
    if unknown := sorted(extra.keys() - known):
        return {}, {}, f"MLFLOW_S3_UPLOAD_EXTRA_ARGS has {', '.join(unknown)}"
    config = {_ENCRYPTION[key]: str(extra[key]) for key in extra.keys() & _ENCRYPTION.keys()}
    attributes = {_ATTRIBUTES[key]: str(extra[key]) for key in extra.keys() & _ATTRIBUTES.keys()}
    return config, attributes, ""


def _google(place: Place) -> OpenedStore:
    from obstore.store import GCSStore

    told = dict(conf.get("gcs", {})) | dict(conf.get("gs", {}))
    endpoint = os.environ.get("STORAGE_EMULATOR_HOST") or told.get("endpoint_url") or _GOOGLE
    if "://" not in endpoint:
        endpoint = f"http://{endpoint}"
    credentials = None
    if endpoint.rstrip("/") == _GOOGLE and told.get("token") != "anon":
        credentials = _google_credentials(told.get("token"))
    given: dict[str, Any] = {"credential_provider": credentials}
    if credentials is None:
        # What a server is told of who asks is nothing: only so it can be told to obstore.
        nobody = {"client_email": "", "private_key": "", "private_key_id": ""}
        account = {"gcs_base_url": endpoint.rstrip("/"), "disable_oauth": True, **nobody}
        given = {"config": {"service_account_key": json.dumps(account)}}
    store = _constructed(GCSStore, place.bucket, given, _client_options(endpoint))
    return OpenedStore(store, tells_types=True)


def _google_credentials(token: object) -> Credentials | None:
    found: Any
    from google.auth import default
    from google.auth.exceptions import DefaultCredentialsError
    from google.auth.transport.requests import Request

    if token not in {None, "google_default"}:
        raise UnsuitedError("fsspec's settings have a token")
    try:
        found, _ = default(scopes=[_GOOGLE_SCOPE])
    except DefaultCredentialsError:  # MLflow then asks as nobody
        return None

    def provide() -> dict[str, Any]:
        if not found.valid:
            found.refresh(Request())
        last = dt.datetime.now(dt.timezone.utc) + _CREDENTIALS_LAST
        ends = found.expiry.replace(tzinfo=dt.timezone.utc) if found.expiry else last
        return {"token": found.token, "expires_at": min(ends, last)}

    return provide


def _azure(place: Place) -> OpenedStore:
    from obstore.store import AzureStore

    told = dict(conf.get("az", {})) | dict(conf.get("abfs", {}))
    account, _, domain = place.host.partition(".")
    said = told.get("connection_string") or os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
    connection = _connection(said) if said else {}
    if account and connection.get("AccountName", account) != account:
        connection = {}
    named = told.get("account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    account = account or connection.get("AccountName") or named or ""
    if not account or ".fabric." in domain:
        raise UnsuitedError("its account is not said, or of Fabric")
    endpoint = connection.get("BlobEndpoint")
    if endpoint is None:
        scheme = connection.get("DefaultEndpointsProtocol", "https")
        suffix = connection.get("EndpointSuffix", "core.windows.net")
        host = domain.replace("dfs.", "blob.", 1) if domain else f"blob.{suffix}"
        endpoint = f"{scheme}://{account}.{host}"
    given: dict[str, Any] = {"config": {"account_name": account, "endpoint": endpoint.rstrip("/")}}
    credentials = _azure_credentials(connection, told)
    if credentials is None:
        given["config"]["skip_signature"] = True
    else:
        given["credential_provider"] = credentials
    return OpenedStore(_constructed(AzureStore, place.bucket, given, _client_options(endpoint)))


def _azure_credentials(
    connection: Mapping[str, str], told: Mapping[str, Any]
) -> Credentials | None:
    key = (
        connection.get("AccountKey")
        or told.get("account_key")
        or os.environ.get("AZURE_STORAGE_ACCESS_KEY")
        or os.environ.get("AZURE_STORAGE_ACCOUNT_KEY")
    )
    if key:
        return lambda: {"access_key": key, "expires_at": None}
    token = (
        connection.get("SharedAccessSignature")
        or told.get("sas_token")
        or os.environ.get("AZURE_STORAGE_SAS_TOKEN")
    )
    if token:
        return lambda: {"sas_token": token.removeprefix("?"), "expires_at": None}
    if told.get("anon") is True:
        return None
    if told.keys() & {"credential", "client_id", "client_secret", "tenant_id"}:
        raise UnsuitedError("fsspec's settings have credentials")
    from azure.identity import DefaultAzureCredential

    found = DefaultAzureCredential()

    def provide() -> dict[str, Any]:
        given = found.get_token(_AZURE_SCOPE)
        ends = dt.datetime.fromtimestamp(given.expires_on, dt.timezone.utc)
        return {"token": given.token, "expires_at": ends}

    return provide


def _connection(said: str) -> dict[str, str]:
    """Return what is said in a connection string of Azure's."""
    parts = dict(part.split("=", 1) for part in said.split(";") if "=" in part)
    if parts.get("UseDevelopmentStorage", "").lower() == "true":
        parts.setdefault("AccountName", _EMULATED_ACCOUNT)
        parts.setdefault("AccountKey", _EMULATED_KEY)
        parts.setdefault("BlobEndpoint", f"http://127.0.0.1:10000/{_EMULATED_ACCOUNT}")
    return parts


def _client_options(endpoint: str) -> dict[str, Any]:
    return {
        "allow_http": endpoint.startswith("http:"),
        "connect_timeout": dt.timedelta(seconds=_CONNECT_SECONDS),
        "read_timeout": dt.timedelta(seconds=_SILENCE_SECONDS),
        "timeout": dt.timedelta(seconds=_REQUEST_SECONDS),
    }


def _constructed(kind: Any, bucket: str, given: dict[str, Any], options: dict[str, Any]) -> Any:
    retries = {
        "max_retries": _RETRIES,
        "backoff": {
            "init_backoff": dt.timedelta(milliseconds=200),
            "max_backoff": dt.timedelta(seconds=15),
            "base": 2,
        },
        "retry_timeout": dt.timedelta(seconds=_PATIENCE_SECONDS),
    }
    try:
        return kind(bucket, client_options=options, retry_config=retries, **given)
    except ValueError:
        # Before 0.12 it does not know both of these; what the system trusts may be enough.
        known = {k: v for k, v in options.items() if k not in {"read_timeout", "root_certificate"}}
        known["timeout"] = dt.timedelta(seconds=_REQUEST_SECONDS_WITHOUT_SILENCE)
        return kind(bucket, client_options=known, retry_config=retries, **given)
