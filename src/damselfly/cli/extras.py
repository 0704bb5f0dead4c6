"""What to say when a package of an extra is not installed."""

from collections.abc import Generator
from contextlib import contextmanager

from damselfly.errors import UsageError

PACKAGES = frozenset(
    {"aiohttp", "blake3", "google", "grpc", "hpack", "prometheus_client", "uvloop"}
)


@contextmanager
def extras_needed(who: str, *, extra: str = "agent") -> Generator[None]:
    """Import inside of this: a missing package of the extra becomes advice.

    Raises:
        UsageError: It says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        name = (exc.name or "").partition(".")[0]
        if name not in PACKAGES:
            raise
        raise UsageError(
            f"{who} needs the package {name}, and only the client is installed here:"
            f" pip install 'damselfly[{extra}]'"
        ) from None
