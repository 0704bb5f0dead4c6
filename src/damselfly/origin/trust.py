"""Whom HTTPS origins are believed to be: certificate authorities from the environment."""

import os
import ssl
from pathlib import Path

from damselfly.errors import ConfigError

_OWN = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def trusted() -> ssl.SSLContext:
    """Make a context that trusts what the environment says, else what the system does.

    OpenSSL reads `SSL_CERT_FILE` and `SSL_CERT_DIR` itself. Where neither is set, the variables
    that other HTTP clients read (`REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`) take the system's place.

    Raises:
        ConfigError: a variable names what cannot be read as certificates.
    """
    own = [name for name in _OWN if os.environ.get(name)]
    for name in own:
        if not any(Path(place).exists() for place in os.environ[name].split(os.pathsep)):
            raise ConfigError(f"{name} names {os.environ[name]}, which is not there")
    for name in () if own else _BUNDLES:
        if not os.environ.get(name):
            continue
        bundle = Path(os.environ[name])
        try:
            if bundle.is_dir():
                return ssl.create_default_context(capath=str(bundle))
            return ssl.create_default_context(cafile=str(bundle))
        except OSError as exc:
            raise ConfigError(f"reading the certificates in {bundle}, from {name}") from exc
    return ssl.create_default_context()
