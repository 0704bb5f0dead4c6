"""What the configuration says of clouds: where they are, and which filesystems may be read."""

from dataclasses import dataclass

REFUSED = frozenset(
    {"file", "local", "memory", "data", "generic", "reference", "root", "pyscript"}  # This machine.
    | {"simplecache", "filecache", "blockcache", "cached", "dir", "zip", "tar", "libarchive"}
    | {"asyncwrapper", "async_wrapper", "asynclocal", "dask", "git", "dvc"}
    | {"http", "https", "hf", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci"}  # Ours.
)
"""Schemes that no configuration allows."""


@dataclass(frozen=True, slots=True)
class Clouds:
    """None is what the environment says, else the cloud's own place."""

    gs_endpoint: str | None = None
    az_account: str | None = None
    az_endpoint: str | None = None
    fsspec: tuple[str, ...] = ()
    """Schemes that are read through fsspec."""


def check_scheme(scheme: str) -> str:
    """Return `scheme` if the configuration may name it.

    Raises:
        ValueError: it may not.
    """
    if scheme in REFUSED:
        raise ValueError(f"{scheme}:// is this machine's, wraps another one, or is spoken already")
    if not scheme.isascii() or not scheme.replace("-", "").replace("+", "").isalnum():
        raise ValueError("not a list of schemes, as in sftp,smb")
    return scheme
