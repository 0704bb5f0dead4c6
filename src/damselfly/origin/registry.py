"""Which origin speaks a ref's scheme."""

from urllib.parse import urlsplit

from damselfly.errors import DamselflyError, UsageError
from damselfly.model.ref import Ref
from damselfly.model.schemes import SCHEMES
from damselfly.origin.az import AZContainers
from damselfly.origin.az_account import AZAccount
from damselfly.origin.bucket import BucketOrigin
from damselfly.origin.clouds import Clouds
from damselfly.origin.file import FileOrigin
from damselfly.origin.fsspec import FsspecOrigin
from damselfly.origin.gate import Gate
from damselfly.origin.gs import GSBuckets, endpoint_of
from damselfly.origin.http import HTTPOrigin
from damselfly.origin.hub import HubOrigin
from damselfly.origin.hub_environment import HubEnvironment
from damselfly.origin.oci import OCIOrigin
from damselfly.origin.port import Origin, OriginLimits
from damselfly.origin.s3 import S3API
from damselfly.origin.s3_place import S3Place
from damselfly.origin.web import Web


class Origins:
    """Every origin of an agent, made when first asked for. Belongs to one event loop."""

    def __init__(
        self,
        limits: OriginLimits | None = None,
        *,
        gate: Gate | None = None,
        s3: S3Place | None = None,
        clouds: Clouds | None = None,
        insecure: frozenset[str] = frozenset(),
    ) -> None:
        """A `gate` shares the hosts' budgets with others; without one they are asked alone."""
        self._limits = limits or OriginLimits()
        self._s3 = s3
        self._clouds = clouds or Clouds()
        self._insecure = insecure
        self._web = Web(self._limits, gate)
        self._made: dict[str, Origin] = {}

    def for_ref(self, ref: Ref) -> Origin:
        """The origin to ask about `ref`.

        Raises:
            UsageError: there is none for its scheme.
        """
        schemes = (*SCHEMES, *self._clouds.fsspec)
        if ref.scheme not in schemes:
            known = ", ".join(f"{scheme}://" for scheme in schemes)
            raise UsageError(f"no origin speaks {ref.scheme}:// ({ref.safe}): known are {known}")
        kind = "http" if ref.scheme == "https" else ref.scheme
        if kind not in SCHEMES:
            kind = "fsspec"
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        return self._made[kind]

    def endpoint_of(self, ref: Ref) -> str:
        """The host of the endpoint where the bucket or repository of a ref is asked.

        Empty where the ref says it, and for Amazon's own, which has a host for every bucket.
        """
        clouds = self._clouds
        try:
            match ref.scheme:
                case "hf":
                    where = HubEnvironment().endpoint
                case "s3":
                    where = (self._s3 or S3Place.of()).endpoint or ""
                case "gs":
                    where = endpoint_of(clouds.gs_endpoint)
                case "az":
                    where = AZAccount.of(clouds.az_account, clouds.az_endpoint).endpoint
                case _:
                    where = ""
        except DamselflyError:
            return ""  # Whoever asks there is told what is wrong.
        return urlsplit(where).netloc.rpartition("@")[2]

    async def close(self) -> None:
        """Give everything back."""
        for origin in self._made.values():
            await origin.close()
        self._made.clear()
        await self._web.close()

    def _make(self, kind: str) -> Origin:
        limits, web, clouds = self._limits, self._web, self._clouds
        match kind:
            case "file":
                return FileOrigin(limits)
            case "hf":
                return HubOrigin(limits, web)
            case "oci":
                return OCIOrigin(limits, web, self._insecure)
            case "s3":
                return BucketOrigin(S3API(web, limits, self._s3 or S3Place.of()), web, limits)
            case "gs":
                return BucketOrigin(GSBuckets(web, endpoint_of(clouds.gs_endpoint)), web, limits)
            case "az":
                account = AZAccount.of(clouds.az_account, clouds.az_endpoint)
                return BucketOrigin(AZContainers(web, account), web, limits)
            case "fsspec":
                return FsspecOrigin(limits)
            case _:
                return HTTPOrigin(limits, web)
