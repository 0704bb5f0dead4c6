"""Which proxy the environment names for a URL (`http_proxy`, `https_proxy`, `no_proxy`)."""

from urllib.request import getproxies, proxy_bypass

from yarl import URL

from damselfly.errors import ConfigError


def proxy_for(place: URL) -> URL | None:
    """The proxy to go through, with what it wants to be shown as its userinfo; None: none.

    Raises:
        ConfigError: the environment names something that is no proxy.
    """
    text = getproxies().get(place.scheme)
    if not text or place.host is None or proxy_bypass(place.host):
        return None
    try:
        proxy = URL(text)
    except ValueError:
        proxy = URL()
    if proxy.scheme not in {"http", "https"} or not proxy.host:
        raise ConfigError(f"{place.scheme}_proxy of the environment is not an http:// URL")
    return proxy
