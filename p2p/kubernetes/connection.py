"""How the API server of Kubernetes is asked: credentials, objects, streams, and what errors mean.

From `kubernetes_asyncio` (the extra `damselfly[kubernetes]`, imported when a connection is made)
come credentials, TLS and the session. Answers are read here, as JSON: the library's `Watch`
connects and lists again behind our back.
"""

import asyncio
import importlib
import json
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, cast

import aiohttp

from damselfly import __version__
from damselfly.errors import (
    ConfigError,
    DamselflyError,
    DeniedError,
    NotFoundError,
    RemoteProtocolError,
    UnavailableError,
    UsageError,
)
from damselfly.p2p.kubernetes.objects import object_of

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, kw_only=True)
class KubernetesLimits:
    """How patient we are with an API server, and how much it may send."""

    connect_s: float = 5.0
    answer_s: float = 30.0
    """For a whole list: a server that has just started answers late."""
    silence_s: float = 150.0
    """Servers send a bookmark about every minute: so long without a byte, and the connection is
    dead, though nobody said so."""
    watch_s: int = 600
    """We ask for the end of a watch ourselves, so that agents spread over a server's replicas."""
    list_bytes_max: int = 64 << 20
    """A list of 10,000 endpoints is 5 MB."""
    event_bytes_max: int = 4 << 20
    """No object of Kubernetes is larger than 1.5 MiB."""


class ExpiredError(UnavailableError):
    """The API server has forgotten the version that we wanted to go on from (410)."""


class KubernetesConnection:
    """Asks one API server. Belongs to one event loop.

    Credentials are read when it is first asked, and again after every failure: a token that was
    rotated, or a certificate that was renewed, costs one request.

    Asking raises:
        UnavailableError: the server does not answer, or says that it cannot now.
        ExpiredError: it has forgotten the version that was to be gone on from.
        DeniedError: it refuses (401, 403); the message says what right is missing.
        NotFoundError: it has no such object.
        RemoteProtocolError: it answers with something that we do not understand.
        ConfigError: nothing says where it is, or what says so cannot be read.
    """

    def __init__(
        self,
        limits: KubernetesLimits | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        service_account: Path = SERVICE_ACCOUNT,
    ) -> None:
        """Prepare to ask; nothing is sent yet.

        Raises:
            UsageError: the extra `damselfly[kubernetes]` is not installed.
        """
        self._limits = limits or KubernetesLimits()
        self._environ = os.environ if environ is None else environ
        self._service_account = service_account
        self._client_module = _module("kubernetes_asyncio.client")
        self._config_module = _module("kubernetes_asyncio.config")
        self._yaml_module = _module("yaml")
        self._client: Any = None
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<KubernetesConnection {self._client.configuration.host if self._client else '-'}>"

    async def close(self) -> None:
        """Close the connections; asking opens them anew."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def check(self) -> None:
        """Find out where the server is and who we are to it, without asking it.

        Raises:
            ConfigError: nothing says so, or what says so cannot be read.
        """
        await self._connected()

    async def get(self, path: str, query: Mapping[str, str], what: str) -> Mapping[str, Any]:
        """One JSON object; `what` says in errors what was asked for."""
        limits = self._limits
        timeout = aiohttp.ClientTimeout(total=limits.answer_s, sock_connect=limits.connect_s)
        async with self._answer(path, query, timeout, what) as response:
            data = await _read(response, limits.list_bytes_max, what)
        # Megabytes take tens of milliseconds: not in the loop that serves chunks.
        return await asyncio.to_thread(parsed, data, what)

    async def lines(self, path: str, query: Mapping[str, str], what: str) -> AsyncGenerator[bytes]:
        """The lines of a stream, until the server ends it in good order."""
        limits = self._limits
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=limits.connect_s, sock_read=limits.silence_s
        )
        rest = b""
        query = {**query, "timeoutSeconds": str(limits.watch_s)}
        async with self._answer(path, query, timeout, what) as response:
            async for part in response.content.iter_any():
                *whole, rest = (rest + part).split(b"\n")
                if len(rest) > limits.event_bytes_max:
                    raise RemoteProtocolError(f"the API server tells {what} without end")
                for line in whole:
                    if line.strip():
                        yield line
            if rest.strip():
                raise UnavailableError(f"the API server broke off amid {what}")

    @asynccontextmanager
    async def _answer(
        self, path: str, query: Mapping[str, str], timeout: aiohttp.ClientTimeout, what: str
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        try:
            response = await self._ask(path, query, timeout)
            if response.status == 401:
                # The token was rotated, and what we read of it has run out.
                response.close()
                await self.close()
                response = await self._ask(path, query, timeout)
            async with response:
                if response.status != 200:
                    data = await _read(response, self._limits.event_bytes_max, what)
                    refuse(response.status, _message_of(data), what)
                yield response
        except DamselflyError:
            await self.close()  # Whatever it was, credentials are read again.
            raise
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            await self.close()
            raise UnavailableError(f"asking the API server for {what}") from exc

    async def _ask(
        self, path: str, query: Mapping[str, str], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        client = await self._connected()
        answer = await client.call_api(
            path,
            "GET",
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=timeout,
        )
        return cast("aiohttp.ClientResponse", answer)

    async def _connected(self) -> Any:  # noqa: ANN401 - the library has no types
        async with self._lock:
            if self._client is None:
                configuration = self._client_module.Configuration()
                await self._configure(configuration)
                self._client = self._client_module.ApiClient(configuration)
                self._client.user_agent = f"damselfly/{__version__}"
            return self._client

    async def _configure(self, configuration: object) -> None:
        config = self._config_module
        # Whatever a file has that is not what the library expects.
        unusable = (OSError, ValueError, TypeError, KeyError, AttributeError)
        kubeconfig = self._environ.get("KUBECONFIG") or None
        try:
            if kubeconfig is None and self._environ.get("KUBERNETES_SERVICE_HOST"):
                config.load_incluster_config(
                    configuration,
                    token_filename=str(self._service_account / "token"),
                    cert_filename=str(self._service_account / "ca.crt"),
                    environ=self._environ,
                )
            else:
                await config.load_kube_config(
                    config_file=kubeconfig,
                    client_configuration=configuration,
                    persist_config=False,
                )
        except (config.ConfigException, self._yaml_module.YAMLError, *unusable) as exc:
            where = f"$KUBECONFIG, {kubeconfig}" if kubeconfig else "the pod, or ~/.kube/config"
            raise ConfigError(f"finding the API server of Kubernetes by {where}") from exc


def refuse(code: int, message: str, what: str) -> NoReturn:
    """Raise what an HTTP status, or the code of an ERROR event, means for us."""
    told = f"the API server answers {code} when asked for {what}"
    if message:
        told += f": {message[:500]}"
    if code == 410:
        raise ExpiredError(told)
    if code in {401, 403}:
        raise DeniedError(told)
    if code == 404:
        raise NotFoundError(told)
    if code == 429 or code >= 500:
        raise UnavailableError(told)
    raise RemoteProtocolError(told)


def parsed(data: bytes, what: str) -> Mapping[str, Any]:
    """Read a JSON object of the API server.

    Raises:
        RemoteProtocolError: it is something else.
    """
    try:
        return object_of(json.loads(data))
    except (ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"the API server answers {what} with no JSON") from exc


def _message_of(data: bytes) -> str:
    try:
        message = object_of(json.loads(data)).get("message")
    except (ValueError, RecursionError, RemoteProtocolError):
        return ""  # A proxy before the server answers with a page for people.
    return message if isinstance(message, str) else ""


async def _read(response: aiohttp.ClientResponse, count_max: int, what: str) -> bytes:
    data = bytearray()
    async for part in response.content.iter_any():
        data += part
        if len(data) > count_max:
            raise RemoteProtocolError(f"the API server sends more than {count_max} bytes of {what}")
    return bytes(data)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        raise UsageError(
            f"asking Kubernetes needs the package {(exc.name or name).partition('.')[0]}:"
            " pip install 'damselfly[kubernetes]'"
        ) from None
