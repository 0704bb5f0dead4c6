"""Which Azure account `az://` means, and what the environment has to open it with.

An account and its endpoint are no secrets: they count for whoever asks. A key or a SAS token of the
environment is the agent's own, and opens nothing for a pod.
"""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from damselfly.errors import ConfigError
from damselfly.origin.s3_place import check_endpoint

_ACCOUNT = re.compile(r"[a-z0-9]{3,24}", re.ASCII)
_SUFFIX = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+){0,8}", re.ASCII)
_SAS = re.compile(r"[!-~]{1,4096}", re.ASCII)
EMULATOR_ACCOUNT = "devstoreaccount1"
EMULATOR_ENDPOINT = f"http://127.0.0.1:10000/{EMULATOR_ACCOUNT}"
EMULATOR_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""Known to everybody: Microsoft documents it for its emulator."""


@dataclass(frozen=True, slots=True)
class AZAccount:
    """An account; `key` and `sas` are the agent's own, where the environment has them."""

    name: str
    endpoint: str
    key: bytes | None = field(default=None, repr=False)
    sas: str | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        name: str | None,
        endpoint: str | None,
        environ: Mapping[str, str] = os.environ,
    ) -> "AZAccount":
        """What the configuration says, else what Azure's own programs would read.

        Raises:
            ConfigError: there is no account, or what the environment has is none.
        """
        said = _connection(environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
        found = (
            name
            or environ.get("AZURE_STORAGE_ACCOUNT")
            or environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        )
        if found is None or not said or said.get("accountname", found) == found:
            found = found or said.get("accountname")
        else:
            said = {}  # The string is another account's, and so are its keys.
        if found is None:
            raise ConfigError(
                "az:// needs to know the account: --az-account, AZURE_STORAGE_ACCOUNT or"
                " AZURE_STORAGE_CONNECTION_STRING"
            )
        if not _ACCOUNT.fullmatch(found):
            raise ConfigError("what is said of the Azure account cannot be the name of one")
        place = endpoint or said.get("blobendpoint")
        if place is None:
            protocol = said.get("defaultendpointsprotocol", "https")
            suffix = said.get("endpointsuffix", "core.windows.net")
            if protocol not in {"http", "https"} or not _SUFFIX.fullmatch(suffix):
                raise ConfigError("AZURE_STORAGE_CONNECTION_STRING does not say where it leads")
            place = f"{protocol}://{found}.blob.{suffix}"
        try:
            place = check_endpoint(place)
        except ValueError as exc:
            raise ConfigError("AZURE_STORAGE_CONNECTION_STRING names no endpoint") from exc
        key = (
            said.get("accountkey")
            or environ.get("AZURE_STORAGE_KEY")
            or environ.get("AZURE_STORAGE_ACCOUNT_KEY")
        )
        sas = said.get("sharedaccesssignature") or environ.get("AZURE_STORAGE_SAS_TOKEN")
        return cls(found, place, key_of(key) if key else None, _sas_of(sas) if sas else None)


def key_of(text: str) -> bytes:
    """Read an account's key.

    Raises:
        ConfigError: it is none.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError("the key of the Azure account is not base64") from None


def _sas_of(text: str) -> str:
    text = text.removeprefix("?")
    if not _SAS.fullmatch(text) or "#" in text:
        raise ConfigError("the SAS token of the environment is no query of a URL")
    return text


def _connection(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for item in filter(None, text.strip().split(";")):
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError("AZURE_STORAGE_CONNECTION_STRING is not NAME=VALUE;...")
        fields[name.strip().lower()] = value.strip()
    if fields.get("usedevelopmentstorage", "").lower() == "true":
        fields.setdefault("accountname", EMULATOR_ACCOUNT)
        fields.setdefault("accountkey", EMULATOR_KEY)
        fields.setdefault("blobendpoint", EMULATOR_ENDPOINT)
    return fields
