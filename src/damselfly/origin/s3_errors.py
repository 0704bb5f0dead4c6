"""What S3 says when it refuses: its error codes as errors of ours, without any of its prose.

The text beside a code may repeat a key id or what was signed, so only the code is told.
"""

import re
from dataclasses import dataclass

from damselfly.errors import (
    DamselflyError,
    OriginBusyError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    RemoteProtocolError,
)
from damselfly.origin import xml_tree
from damselfly.origin.s3_place import check_region
from damselfly.origin.web import Answer

_CODE = re.compile(r"[A-Za-z0-9.]{1,64}", re.ASCII)
_BODY_BYTES_MAX = 64 << 10
_RETRY_AFTER_S_MAX = 3600.0
_BUSY = frozenset({"SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "Throttling"})
_LATER = frozenset(
    {
        "BadDigest",  # What came is not what was sent.
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "XAmzContentSHA256Mismatch",
    }
)
_KEYS_ARE_STALE = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired"}
)
_DENIED = _KEYS_ARE_STALE | {
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "InvalidSecurity",
    "NotSignedUp",
    "SignatureDoesNotMatch",
}
_MISSING = {
    "NoSuchBucket": "there is no such bucket",
    "NoSuchKey": "there is no such object",
    "NoSuchVersion": "this version of the object is gone",
    "NoSuchUpload": "the parts that were sent are gone",
}


@dataclass(frozen=True, slots=True)
class S3Refusal:
    """An answer of S3 that is none; `code` is empty where it did not say one that we can read."""

    status: int
    code: str = ""
    region: str | None = None
    """Where the bucket is instead."""
    retry_after_s: float | None = None

    @classmethod
    def of(cls, answer: Answer) -> "S3Refusal":
        """Read what an answer says."""
        code = region = ""
        try:
            told = xml_tree.parse(answer.body[:_BODY_BYTES_MAX])
        except ValueError:
            pass
        else:
            if told.name == "Error" and _CODE.fullmatch(told.find("Code") or ""):
                code = told.find("Code") or ""
                region = told.find("Region") or ""
        region = answer.headers.get("x-amz-bucket-region", "") or region
        try:
            place = check_region(region)
        except ValueError:
            place = None
        return cls(answer.status, code, place, _seconds(answer.headers.get("Retry-After", "")))

    @property
    def is_of_old_keys(self) -> bool:
        """Whether other keys may help."""
        return self.code in _KEYS_ARE_STALE

    @property
    def is_of_the_region(self) -> bool:
        """Whether it was asked in a region where the bucket is not, or may be."""
        if self.status in {301, 307, 308}:
            return True
        if not self.code:
            return self.region is not None
        return self.code in {"AuthorizationHeaderMalformed", "PermanentRedirect"}

    def error(self, doing: str) -> DamselflyError:
        """The error of the origin port that it means."""
        said = f"{doing}: the origin answered {self.code or self.status}"
        match self.code:
            case "RequestTimeTooSkewed":
                return OriginDeniedError(f"{doing}: the clock of this machine, or its, is wrong")
            case "PreconditionFailed" | "ConditionalRequestConflict":
                return OriginChangedError(f"{doing}: it was replaced meanwhile")
            case code if code in _MISSING:
                return OriginNotFoundError(f"{doing}: {_MISSING[code]}")
            case code if code in _BUSY:
                return OriginBusyError(said, self.retry_after_s)
            case code if code in _LATER:
                return OriginUnavailableError(said)
            case code if code in _DENIED:
                return OriginDeniedError(said)
            case _:
                return self._error_of_status(doing, said)

    def _error_of_status(self, doing: str, said: str) -> DamselflyError:
        match self.status:
            case 401 | 403 | 407:
                return OriginDeniedError(said)
            case 404 | 410:
                return OriginNotFoundError(said)
            case 412:
                return OriginChangedError(f"{doing}: it was replaced meanwhile")
            case 429 | 503:
                return OriginBusyError(said, self.retry_after_s)
            case 408 | 425:
                return OriginUnavailableError(said)
            case status if status >= 500:
                return OriginUnavailableError(said)
            case _:
                return RemoteProtocolError(said)


def _seconds(text: str) -> float | None:
    text = text.strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 9):
        return None
    return min(float(text), _RETRY_AFTER_S_MAX)
