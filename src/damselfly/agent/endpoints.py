"""Where this agent asks the hub and buckets: what rules about them must know of the web."""

from collections.abc import Callable

from damselfly.agent.settings import OriginSettings
from damselfly.errors import UsageError
from damselfly.model.spelling import NO_ENDPOINTS, Endpoints
from damselfly.origin.az_account import AZAccount
from damselfly.origin.gs import endpoint_of
from damselfly.origin.hub_environment import HubEnvironment
from damselfly.origin.s3_place import S3Place


def endpoints(config: OriginSettings) -> Endpoints:
    """The addresses of this agent's endpoints; one that is not known is asked for nothing."""
    found = NO_ENDPOINTS
    addresses: dict[str, Callable[[], str | None]] = {
        "hf": lambda: HubEnvironment().endpoint,
        "s3": lambda: S3Place.of(config.s3_endpoint, config.s3_region).endpoint,
        "gs": lambda: endpoint_of(config.gs_endpoint),
        "az": lambda: AZAccount.of(config.az_account, config.az_endpoint).endpoint,
    }
    for scheme, address in addresses.items():
        try:
            place = address()
            if place is not None:
                found = found.also(scheme, place)
        except UsageError:
            continue  # Who asks for something there is told; and what is no ref is not asked for.
    return found
