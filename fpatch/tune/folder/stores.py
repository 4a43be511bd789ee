"""Object stores of `sweep.storage`; their URIs are recorded, so they must hold no secret."""

import re
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pyarrow as pa
from pyarrow.fs import FileSystem

_OPTIONS = {
    "allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open", "background_writes",
    "blob_storage_authority", "client_id", "credential_kind", "dfs_storage_authority", "enable_tls",
    "endpoint_override", "project_id", "region", "retry_limit_seconds", "scheme", "smart_defaults",
    "tenant_id", "tls_ca_dir_path", "tls_ca_file_path", "tls_verify_certificates",
}  # fmt: skip
"""Options of pyarrow in a URI, without those that hold a secret."""

_SECRETS = {
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, a file, or `gcloud auth application-default login`",
    "abfs": "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or `az login`; an account key or a "
    "shared access signature is not supported",
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the file ~/.aws/credentials",
}
"""Where pyarrow and a store's own tools look for credentials."""
_SECRETS |= {"gcs": _SECRETS["gs"], "abfss": _SECRETS["abfs"]}

_WHOLE = ("s3", "gcs", "abfs")
"""Stores that write a file atomically."""


def open_storage(uri: str, folder: str = "") -> tuple[FileSystem, str]:
    """Open the store of a URI; return it with the path in it.

    Args:
        uri: URI of pyarrow, with options after a question mark: s3://BUCKET/PREFIX?region=eu-central-1,
            gs://BUCKET/PREFIX, abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX, file:///PATH.
        folder: Appended to the path.

    Raises:
        ValueError: If the URI names no store, or may hold a secret, which the error does not repeat.
        OSError: If the store does not answer.
    """
    check_uri(uri)
    try:
        store, path = FileSystem.from_uri(uri)
    except (pa.ArrowException, ImportError) as error:
        raise ValueError(f"sweep.storage must name a store of pyarrow, got {uri!r}: {error}") from error
    return store, "/".join(part for part in (path.rstrip("/"), folder) if part)


def check_uri(uri: str) -> None:
    """Check a URI without a request to the store.

    Raises:
        ValueError: If the URI names no store, or may hold a secret.
    """
    scheme, _, rest = uri.partition("://")
    where = _SECRETS.get(scheme, "the environment, or the configuration of the store's own tools")
    if re.search(":.*@", unquote(rest or uri), re.DOTALL):
        raise ValueError(
            "sweep.storage is recorded, so it must not hold a password (between ':' and '@'); leave it out, "
            f"and give it by {where}"
        )
    for option in filter(None, re.split("[&;#]", uri.partition("?")[2])):
        name = unquote(option.partition("=")[0])
        if name not in _OPTIONS:
            raise ValueError(
                f"sweep.storage is recorded, so it must hold no secret: option {name!r} must be one of "
                f"{', '.join(sorted(_OPTIONS))}; leave it out, and give credentials by {where}"
            )
    parts = urlsplit(uri)
    if not parts.scheme or not parts.netloc + parts.path.strip("/"):
        raise ValueError(f"sweep.storage must be like s3://BUCKET/PREFIX or file:///FOLDER, got {uri!r}")


def check_storage(uri: str) -> None:
    """Check that a store can be written: write a small file and delete it.

    Raises:
        ValueError: If the URI names no store, or may hold a secret.
        OSError: If the store cannot be written.
    """
    store, path = open_storage(uri, f".fpatch-{uuid4().hex}")
    try:
        write_file(store, path, b"may this be written?")
        store.delete_file(path)
    except (OSError, pa.ArrowException) as error:
        raise OSError(f"sweep.storage: {uri} cannot be written: {error}") from error


def write_file(store: FileSystem, path: str, data: bytes) -> None:
    """Replace a file atomically."""
    if store.type_name in _WHOLE:
        with store.open_output_stream(path) as file:
            file.write(data)
        return
    store.create_dir(path.rpartition("/")[0])
    with store.open_output_stream(f"{path}.tmp") as file:
        file.write(data)
    store.move(f"{path}.tmp", path)
