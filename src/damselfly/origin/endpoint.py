"""Endpoints of clouds, as somebody writes them down."""

from urllib.parse import urlsplit


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
