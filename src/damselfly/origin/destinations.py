"""Which destination takes a push to a ref, by its scheme. Each is imported when it is needed.

What a destination needs beyond the agent's packages is an extra of its own: whoever pushes to a
bucket need not install what speaks to hubs.
"""

import importlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, cast

from damselfly.errors import UsageError
from damselfly.model.ref import Ref
from damselfly.origin.access import Access
from damselfly.origin.az_account import AZAccount
from damselfly.origin.clouds import Clouds
from damselfly.origin.destination import Destination
from damselfly.origin.port import OriginLimits
from damselfly.origin.s3_place import S3Place
from damselfly.origin.web import Web

_MAKERS = {
    "s3": "damselfly.origin.s3_push:S3Destination",
    "gs": "damselfly.origin.gs_push:GSDestination",
    "az": "damselfly.origin.az_push:AzDestination",
    "hf": "damselfly.origin.hub_push:HubDestination",
    "oci": "damselfly.origin.oci_push:OCIDestination",
}
_EXTRAS = {"s3": "s3", "gs": "gs", "az": "az", "hf": "hf"}


class Maker(Protocol):
    """Makes the destination for a ref; its class, as a rule."""

    def __call__(
        self, ref: Ref, web: Web, access: Access, limits: OriginLimits, **where: object
    ) -> Destination:
        """Make it; nothing is asked of anybody yet."""
        ...


def local_place(destination: str) -> Path | None:
    """The directory that somebody means with a path or a `file://` ref; None: it is elsewhere.

    Raises:
        UsageError: it is not a ref, or one with a pin.
    """
    if "://" not in destination:
        return Path(os.path.realpath(destination))
    ref = Ref.parse(destination)
    if ref.pin is not None:
        raise UsageError(f"pushing to {ref.safe}: a pin says what is there already")
    return Path(os.path.realpath(ref.local_path)) if ref.scheme == "file" else None


def maker_for(ref: Ref) -> Maker:
    """What makes the destination for a ref that is not a local one.

    Raises:
        UsageError: nothing is pushed to its scheme, or an extra is not installed; says which.
    """
    name = _MAKERS.get(ref.scheme)
    if name is None:
        known = ", ".join(f"{scheme}://" for scheme in ("file", *_MAKERS))
        raise UsageError(f"no push goes to {ref.scheme}:// ({ref.safe}): to a path, {known}")
    module, _, kind = name.partition(":")
    with _extra_needed(ref.scheme):
        return cast("Maker", getattr(importlib.import_module(module), kind))


def destination_for(
    ref: Ref,
    web: Web,
    access: Access,
    limits: OriginLimits,
    *,
    s3: S3Place | None = None,
    clouds: Clouds | None = None,
) -> Destination:
    """The destination for a ref that is not a local one; see `maker_for`.

    Raises:
        UsageError, ConfigError: the ref makes no sense, or what it needs to be found lacks.
    """
    clouds = clouds or Clouds()
    maker = maker_for(ref)
    with _extra_needed(ref.scheme):
        match ref.scheme:
            case "s3":
                maker = partial(maker, place=s3)
            case "gs":
                maker = partial(maker, endpoint=clouds.gs_endpoint)
            case "az":
                account = AZAccount.of(clouds.az_account, clouds.az_endpoint)
                maker = partial(maker, account=account)
            case _:
                pass
        return maker(ref, web, access, limits=limits)


@contextmanager
def _extra_needed(scheme: str) -> Generator[None]:
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("damselfly"):
            raise UsageError(f"this version pushes nothing to {scheme}:// yet") from None
        if scheme not in _EXTRAS:
            raise
        raise UsageError(
            f"pushing to {scheme}:// needs the package {(exc.name or '').partition('.')[0]}:"
            f" pip install 'damselfly[{_EXTRAS[scheme]}]'"
        ) from None
