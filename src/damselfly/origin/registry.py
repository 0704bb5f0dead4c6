"""Which origin speaks a ref's scheme."""

from damselfly.errors import UsageError
from damselfly.model.ref import Ref
from damselfly.origin.az import AZContainers
from damselfly.origin.az_account import AZAccount
from damselfly.origin.bucket import BucketOrigin
from damselfly.origin.clouds import Clouds
from damselfly.origin.file import FileOrigin
from damselfly.origin.fsspec import FsspecOrigin
from damselfly.origin.gs import GSBuckets, endpoint_of
from damselfly.origin.http import HTTPOrigin
from damselfly.origin.port import Origin, OriginLimits
from damselfly.origin.s3 import S3API
from damselfly.origin.s3_place import S3Place
from damselfly.origin.web import Web

_KINDS = {"file": "file", "http": "http", "https": "http", "s3": "s3", "gs": "gs", "az": "az"}


class Origins:
    """Every origin of an agent, made when first asked for. Belongs to one event loop."""

    def __init__(
        self,
        limits: OriginLimits | None = None,
        s3: S3Place | None = None,
        clouds: Clouds | None = None,
    ) -> None:
        self._limits = limits or OriginLimits()
        self._s3 = s3
        self._clouds = clouds or Clouds()
        self._web = Web(self._limits)
        self._made: dict[str, Origin] = {}

    def for_ref(self, ref: Ref) -> Origin:
        """The origin to ask about `ref`.

        Raises:
            UsageError: there is none for its scheme.
        """
        kind = _KINDS.get(ref.scheme)
        if kind is None and ref.scheme in self._clouds.fsspec:
            kind = "fsspec"
        if kind is None:
            known = ", ".join(f"{scheme}://" for scheme in (*_KINDS, *self._clouds.fsspec))
            raise UsageError(f"no origin speaks {ref.scheme}:// ({ref.safe}): known are {known}")
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        return self._made[kind]

    async def close(self) -> None:
        """Give everything back."""
        for origin in self._made.values():
            await origin.close()
        self._made.clear()
        await self._web.close()

    def _make(self, kind: str) -> Origin:
        match kind:
            case "file":
                return FileOrigin(self._limits)
            case "s3":
                api = S3API(self._web, self._limits, self._s3 or S3Place.of())
                return BucketOrigin(api, self._web, self._limits)
            case "gs":
                gs = GSBuckets(self._web, endpoint_of(self._clouds.gs_endpoint))
                return BucketOrigin(gs, self._web, self._limits)
            case "az":
                account = AZAccount.of(self._clouds.az_account, self._clouds.az_endpoint)
                return BucketOrigin(AZContainers(self._web, account), self._web, self._limits)
            case "fsspec":
                return FsspecOrigin(self._limits)
            case _:
                return HTTPOrigin(self._limits, self._web)
