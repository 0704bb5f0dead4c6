"""Field blocks: HPACK (RFC 7541) by the `hpack` package, and the rules of RFC 9113 §8.2 and §8.3.

Fields are lists of `(name, value)` text; octets above 127 are Latin-1, so nothing is lost.
"""

import re
from collections.abc import Iterable
from typing import NoReturn

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.limits import Limits
from damselfly.p2p.wire.violation import StreamViolationError, ViolationError

Headers = tuple[tuple[str, str], ...]

HEADER_TABLE_BYTES = 4096

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+", re.ASCII)
_BAD_VALUE = re.compile(r"[\x00\r\n]|^[ \t]|[ \t]$")
_CONNECTION_FIELDS = frozenset(
    ("connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade")
)
_REQUEST_PSEUDO = frozenset((":method", ":scheme", ":path", ":authority"))
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)


class HeaderCodec:
    """One connection's two compression states. An error in decoding is the connection's end."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._encoder = Encoder()
        self._decoder = Decoder(max_header_list_size=limits.header_list_bytes_max)
        self._decoder.max_allowed_table_size = HEADER_TABLE_BYTES

    def encode(self, headers: Iterable[tuple[str, str]]) -> bytes:
        """Compress; names are lower case already."""
        return self._encoder.encode(
            [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
        )

    def decode(self, block: bytes) -> Headers:
        """Decompress a whole block.

        Raises:
            ViolationError: not HPACK, or larger than the limits.
        """
        try:
            fields = [
                (bytes(name).decode("latin-1"), bytes(value).decode("latin-1"))
                for name, value in self._decoder.decode(block, raw=True)
            ]
        except OversizedHeaderListError as exc:
            raise ViolationError(
                "a header list that unpacks to more than we take",
                error_code=ErrorCode.ENHANCE_YOUR_CALM,
            ) from exc
        except HPACKError as exc:
            raise ViolationError(
                "a field block that is not HPACK", error_code=ErrorCode.COMPRESSION_ERROR
            ) from exc
        if len(fields) > self._limits.header_count_max:
            raise ViolationError(
                f"a header list of {len(fields)} fields", error_code=ErrorCode.ENHANCE_YOUR_CALM
            )
        return tuple(fields)

    def limit_encoder(self, table_bytes: int) -> None:
        """Respect the peer's SETTINGS_HEADER_TABLE_SIZE; we never use more than the default."""
        self._encoder.header_table_size = min(table_bytes, HEADER_TABLE_BYTES)


def check_request(headers: Headers, stream_id: int) -> None:
    """Check a request's fields.

    Raises:
        StreamViolationError: the request is malformed.
    """
    pseudo = _check_fields(headers, stream_id, _REQUEST_PSEUDO)
    method = pseudo.get(":method")
    if not method or not _NAME.fullmatch(method.lower()):
        _malformed("a request without a method", stream_id)
    if method == "CONNECT":
        if ":authority" not in pseudo or ":path" in pseudo or ":scheme" in pseudo:
            _malformed("a CONNECT request that names more or less than an authority", stream_id)
        return
    if not pseudo.get(":scheme"):
        _malformed("a request without a scheme", stream_id)
    path = pseudo.get(":path", "")
    if not path.startswith("/") and not (method == "OPTIONS" and path == "*"):
        _malformed("a request without a path", stream_id)
    if any(letter <= " " or letter == "\x7f" for letter in path):
        _malformed("a path with white space or control characters", stream_id)


def check_response(headers: Headers, stream_id: int) -> int:
    """Check a response's fields and return the status.

    Raises:
        StreamViolationError: the response is malformed.
    """
    status = _check_fields(headers, stream_id, frozenset((":status",))).get(":status", "")
    if not re.fullmatch("[1-5][0-9][0-9]", status, re.ASCII) or status == "101":
        _malformed("a response without a valid status", stream_id)
    return int(status)


def check_trailers(headers: Headers, stream_id: int) -> None:
    """Check trailers, which have no pseudo-header fields.

    Raises:
        StreamViolationError: they are malformed.
    """
    _check_fields(headers, stream_id, frozenset())


def content_length(headers: Headers, stream_id: int) -> int | None:
    """Find the length that a message claims for its body.

    Raises:
        StreamViolationError: it is no number, or there are two of them.
    """
    claimed: int | None = None
    for name, value in headers:
        if name == "content-length":
            if not _LENGTH.fullmatch(value) or claimed not in {None, int(value)}:
                _malformed("a content-length that is no single number", stream_id)
            claimed = int(value)
    return claimed


def _check_fields(headers: Headers, stream_id: int, pseudo_known: frozenset[str]) -> dict[str, str]:
    pseudo: dict[str, str] = {}
    regular = False
    for name, value in headers:
        if name.startswith(":"):
            if regular or name in pseudo or name not in pseudo_known:
                _malformed("a pseudo-header field out of place", stream_id)
            pseudo[name] = value
        else:
            regular = True
            if not _NAME.fullmatch(name):
                _malformed("a field name that is no lower-case token", stream_id)
            if name in _CONNECTION_FIELDS or (name == "te" and value != "trailers"):
                _malformed(f"the connection-specific field {name}", stream_id)
        if _BAD_VALUE.search(value):
            _malformed("a field value with forbidden characters", stream_id)
    return pseudo


def _malformed(what: str, stream_id: int) -> NoReturn:
    raise StreamViolationError(what, stream_id=stream_id)
