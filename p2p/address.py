"""Addresses as agents and people write them: `host:port`, or `[v6]:port`. Pure."""

from damselfly.errors import ConfigError


def check_address(text: str) -> str:
    """Check `host:port` or `[v6]:port` and return it.

    Raises:
        ConfigError: it is something else.
    """
    host, port = split_address(text)
    return join_address(host, port)


def split_address(text: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`.

    Raises:
        ConfigError: it is something else.
    """
    host, separator, digits = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    if (
        not separator
        or not bare
        or (":" in bare) != is_bracketed
        or any(char.isspace() or char in "/@" for char in bare)
        or not (digits.isascii() and digits.isdigit() and 0 <= int(digits) < 65536)
    ):
        raise ConfigError(f"{text!r} is not an address: expected HOST:PORT")
    return bare, int(digits)


def join_address(host: str, port: int) -> str:
    """The inverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
