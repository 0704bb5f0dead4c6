"""Where S3 is, and what the URL of an object is there.

Amazon's own buckets are asked at their region's address, by a host name of their own where the
bucket's name can be one. Another endpoint is asked by path, which every server understands; so are
buckets with a dot, whose host name no certificate matches.
"""

import os
import re
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from damselfly.errors import ConfigError, UsageError

DEFAULT_REGION = "us-east-1"
"""Where a bucket is looked for of which nothing is known: it answers where else it is."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,252}", re.ASCII)
_HOST_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_REGION = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+){0,6}", re.ASCII)
_KEY_SAFE = "/-._~"
_QUERY_SAFE = "-._~"


@dataclass(frozen=True, slots=True)
class S3Place:
    """An endpoint of S3, and the region to begin with. Without an endpoint it is Amazon's."""

    endpoint: str | None = None
    region: str | None = None
    _base: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            object.__setattr__(self, "_base", check_endpoint(self.endpoint))
        if self.region is not None:
            check_region(self.region)

    @classmethod
    def of(cls, endpoint: str | None = None, region: str | None = None) -> "S3Place":
        """What is said, else what the environment says as every S3 client reads it.

        Raises:
            ConfigError: it makes no sense.
        """
        said = os.environ.get
        endpoint = endpoint or said("AWS_ENDPOINT_URL_S3") or said("AWS_ENDPOINT_URL") or None
        region = region or said("AWS_REGION") or said("AWS_DEFAULT_REGION") or None
        try:
            return cls(endpoint, region)
        except ValueError as exc:
            raise ConfigError(f"where S3 is: {exc}") from None

    @property
    def first_region(self) -> str:
        """The region to ask first about a bucket that is not known."""
        return self.region or DEFAULT_REGION

    def url(
        self, region: str, bucket: str, key: str = "", query: dict[str, str] | None = None
    ) -> str:
        """The URL of an object, or of a bucket, as it is sent and signed.

        Raises:
            UsageError: no bucket can be called that.
        """
        if not _BUCKET.fullmatch(bucket) or ".." in bucket:
            raise UsageError(f"s3://{bucket} is not what a bucket can be called")
        path = "/" + quote(key, safe=_KEY_SAFE)
        if self.endpoint is not None:
            place = f"{self._base}/{bucket}{path}"
        else:
            host = f"s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")
            if _HOST_LABEL.fullmatch(bucket):
                place = f"https://{bucket}.{host}{path}"
            else:
                place = f"https://{host}/{bucket}{path}"
        if not query:
            return place
        pairs = (
            f"{quote(name, safe=_QUERY_SAFE)}={quote(text, safe=_QUERY_SAFE)}"
            for name, text in query.items()
        )
        return f"{place}?{'&'.join(pairs)}"


def check_endpoint(text: str) -> str:
    """Return the URL of an endpoint without the slash at its end.

    Raises:
        ValueError: it is not one.
    """
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname)
        is_plain = not (parts.query or parts.fragment or "@" in parts.netloc) and parts.port != 0
    except ValueError:
        is_url = is_plain = False
    if not (is_url and is_plain and text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("not an endpoint: http(s)://HOST[:PORT], without credentials or a query")
    return text.rstrip("/")


def check_region(text: str) -> str:
    """Return `text` if a region may be called that: it becomes a part of a host name.

    Raises:
        ValueError: none may.
    """
    if len(text) > 40 or not _REGION.fullmatch(text):
        raise ValueError("not a region, as in eu-central-1")
    return text
