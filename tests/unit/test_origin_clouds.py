"""Clouds without any: signatures, accounts, tokens and their ends."""

import asyncio
import base64
import json
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import azure.identity
import pytest
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.core.pipeline.transport import HttpRequest
from azure.storage.blob._shared.authentication import SharedKeyCredentialPolicy
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from damselfly.errors import (
    ConfigError,
    DamselflyError,
    OriginDeniedError,
    OriginUnavailableError,
    RemoteProtocolError,
    UsageError,
    explain,
)
from damselfly.origin import az, gs
from damselfly.origin.access import ANONYMOUS
from damselfly.origin.az_access import AzureCredentials, SharedKey
from damselfly.origin.az_account import EMULATOR_KEY, AZAccount
from damselfly.origin.cloud_tokens import NONE_S, RENEW_S, CloudToken, CloudTokens
from damselfly.origin.gs_credentials import READ, GoogleCredentials

# --- signatures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "url", "headers"),
    [
        ("GET", "https://acc.blob.core.windows.net/c/a%20b/gr%C3%B6%C3%9Fe", {}),
        ("GET", "https://acc.blob.core.windows.net/c/x", {"If-Match": '"a"'}),
        ("GET", "https://acc.blob.core.windows.net/c?restype=container&comp=list&prefix=a%2Fb", {}),
        ("HEAD", "http://127.0.0.1:10000/acc/c/x", {"x-ms-version": "2020-10-02"}),
        (
            "PUT",
            "https://acc.blob.core.windows.net/c/x?comp=block&blockid=MDA%3D",
            {"Content-Length": "7", "Content-Type": "text/plain", "x-ms-meta-a": "b"},
        ),
        ("PUT", "https://acc.blob.core.windows.net/c/x?comp=blocklist", {"Content-Length": "0"}),
    ],
)
def test_requests_are_signed_as_azures_own_client_signs_them(
    method: str, url: str, headers: dict[str, str]
) -> None:
    key = base64.b64decode(EMULATOR_KEY)
    ours = SharedKey("acc", key, now_s=lambda: 1_800_000_000.0).headers(method, url, headers)

    request: Any = HttpRequest(method, url, headers={**headers, "x-ms-date": ours["x-ms-date"]})
    signer: Any = SharedKeyCredentialPolicy
    policy = signer("acc", EMULATOR_KEY)
    holder: Any = type(
        "Holder", (), {"http_request": request, "context": SimpleNamespace(transport=None)}
    )()
    policy.on_request(holder)

    assert ours["Authorization"] == request.headers["Authorization"]


def test_a_key_does_not_show_itself() -> None:
    account = AZAccount.of("acc", None, {"AZURE_STORAGE_KEY": EMULATOR_KEY})
    assert account.key is not None

    for shown in (repr(account), repr(SharedKey("acc", account.key))):
        assert EMULATOR_KEY not in shown
        assert repr(account.key)[2:20] not in shown


# --- accounts -----------------------------------------------------------------------------------


def test_an_account_is_found_where_azures_programs_look() -> None:
    text = f"AccountName=acc;AccountKey={EMULATOR_KEY};EndpointSuffix=core.chinacloudapi.cn"

    by_string = AZAccount.of(None, None, {"AZURE_STORAGE_CONNECTION_STRING": text})
    by_name = AZAccount.of(None, None, {"AZURE_STORAGE_ACCOUNT": "acc"})
    emulator = AZAccount.of(
        None, None, {"AZURE_STORAGE_CONNECTION_STRING": "UseDevelopmentStorage=true"}
    )
    configured = AZAccount.of("acc", "http://127.0.0.1:1/acc/", {})

    assert by_string.endpoint == "https://acc.blob.core.chinacloudapi.cn"
    assert by_string.key == base64.b64decode(EMULATOR_KEY)
    assert by_name.endpoint == "https://acc.blob.core.windows.net"
    assert emulator.endpoint == "http://127.0.0.1:10000/devstoreaccount1"
    assert configured.endpoint == "http://127.0.0.1:1/acc"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"AZURE_STORAGE_ACCOUNT": "no/account"},
        {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_KEY": "planted!"},
        {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_SAS_TOKEN": "planted #"},
        {"AZURE_STORAGE_CONNECTION_STRING": "planted"},
        {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=acc;BlobEndpoint=http://planted@x"},
        {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=acc;EndpointSuffix=planted/x"},
    ],
)
def test_an_account_that_is_none_is_refused_without_a_secret(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as found:
        AZAccount.of(None, None, environ)

    assert "planted" not in explain(found.value)


def test_google_is_where_the_emulators_variable_says() -> None:
    assert gs.endpoint_of(None, {}) == "https://storage.googleapis.com"
    assert gs.endpoint_of(None, {"STORAGE_EMULATOR_HOST": "h:1"}) == "http://h:1"
    assert gs.endpoint_of("http://said", {"STORAGE_EMULATOR_HOST": "h:1"}) == "http://said"
    with pytest.raises(ConfigError):
        gs.endpoint_of(None, {"STORAGE_EMULATOR_HOST": "ftp://x"})


# --- listings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["", "<Metadata><hdi_isfolder>true</hdi_isfolder></Metadata>"])
def test_a_directory_of_an_account_that_has_them_is_no_file(mark: str) -> None:
    kind = "" if mark else "<ResourceType>directory</ResourceType>"
    page = az.parse_page(
        b"\xef\xbb\xbf<?xml version='1.0'?><EnumerationResults><Blobs><Blob><Name> a</Name>"
        b"<Properties><Content-Length>0</Content-Length><Etag>0x1</Etag>"
        + f"{kind}</Properties>{mark}</Blob>".encode()
        + b"</Blobs><NextMarker>m&amp;m</NextMarker></EnumerationResults>",
        "az://c/",
    )

    assert [(found.key, found.version) for found in page.objects] == [(" a/", 'etag:"0x1"')]
    assert page.next_token == "m&m"


@pytest.mark.parametrize("token", ["", "x" * 5000, 7])
def test_a_page_token_that_is_none_is_refused(token: object) -> None:
    with pytest.raises(RemoteProtocolError):
        gs.parse_page(json.dumps({"nextPageToken": token}).encode(), "gs://b/")


# --- tokens -------------------------------------------------------------------------------------


class _Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ns(self) -> int:
        return int(self.now_s * 1e9)


async def test_a_token_is_kept_until_shortly_before_its_end() -> None:
    clock = _Clock()
    made: list[float] = []

    def make() -> CloudToken:
        made.append(clock.now_s)
        return CloudToken(f"t{len(made)}", clock.now_s + 3600)

    tokens = CloudTokens("x://", make, clock)

    first = await asyncio.gather(*(tokens.access() for _ in range(8)))
    clock.now_s += 3600 - RENEW_S - 1
    kept = await tokens.access()
    clock.now_s += 2
    renewed = await tokens.access()
    tokens.spoil()
    spoiled = await tokens.access()

    assert {access.token for access in first} == {"t1"} == {kept.token}
    assert (renewed.token, spoiled.token) == ("t2", "t3")
    assert "t1" not in repr(CloudToken("t1", None))


async def test_an_old_token_serves_while_a_new_one_cannot_be_made() -> None:
    clock = _Clock()
    fails = False

    def make() -> CloudToken:
        if fails:
            raise OriginUnavailableError("asking for a token")
        return CloudToken("t", clock.now_s + 3600)

    tokens = CloudTokens("x://", make, clock)
    await tokens.access()
    fails = True
    clock.now_s += 3590

    assert (await tokens.access()).token == "t"
    clock.now_s += 11
    with pytest.raises(OriginUnavailableError):
        await tokens.access()


async def test_who_has_no_credentials_is_not_looked_at_every_time() -> None:
    clock = _Clock()
    made: list[None] = []
    tokens = CloudTokens("x://", lambda: made.append(None), clock)

    assert [await tokens.access() for _ in range(3)] == [ANONYMOUS] * 3
    assert len(made) == 1
    clock.now_s += NONE_S
    await tokens.access()
    assert len(made) == 2


# --- what the SDKs find -------------------------------------------------------------------------


@pytest.fixture
def token_server() -> Generator[tuple[str, list[str], list[int]]]:
    """Google's token service, as far as a service account asks it."""
    asked: list[str] = []
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            body = {"access_token": f"tok{len(asked)}", "expires_in": 3600, "token_type": "Bearer"}
            if status[0] != 200:
                body = {"error": "invalid_grant", "error_description": "planted-secret"}
            data = json.dumps(body).encode()
            self.send_response(status[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/token", asked, status
        finally:
            server.shutdown()
            thread.join()


def _service_account(place: str, directory: Path) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = directory / "account.json"
    file.write_text(
        json.dumps(
            {
                "type": "service_account",
                "client_email": "agent@example.iam.gserviceaccount.com",
                "private_key": pem.decode(),
                "token_uri": place,
            }
        )
    )
    return file


def test_a_service_accounts_file_makes_tokens(
    token_server: tuple[str, list[str], list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, asked, status = token_server
    file = _service_account(place, tmp_path)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    make = GoogleCredentials(READ)

    first = make()
    second = make()

    assert first is not None
    assert second is not None
    assert (first.value, second.value) == ("tok1", "tok2")
    assert first.ends_s is not None
    claims = parse_qs(asked[0])["assertion"][0].split(".")[1]
    assert READ in base64.urlsafe_b64decode(claims + "==").decode()
    status[0] = 400
    with pytest.raises(OriginDeniedError) as found:
        make()
    assert "planted-secret" not in explain(found.value)


def test_a_file_that_is_named_and_cannot_be_used_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))

    with pytest.raises(ConfigError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        GoogleCredentials(READ)()


def test_google_is_open_to_whoever_has_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")

    assert GoogleCredentials(READ)() is None


class _Identity:
    """Stands for `DefaultAzureCredential`: without it, a test would ask this machine's metadata."""

    error: Exception | None = None

    def __init__(self, **_: object) -> None:
        pass

    def get_token(self, scope: str) -> object:
        assert scope == "https://storage.azure.com/.default"
        if self.error is not None:
            raise self.error
        return type("Made", (), {"token": "tok", "expires_on": 1234})()


@pytest.mark.parametrize(
    ("error", "environ", "expected"),
    [
        (None, {}, CloudToken("tok", 1234.0)),
        (azure.identity.CredentialUnavailableError(message="none"), {}, None),
        (ClientAuthenticationError(message="planted"), {}, None),
        (ClientAuthenticationError(message="planted"), {"AZURE_CLIENT_ID": "x"}, OriginDeniedError),
        (ServiceRequestError("planted"), {}, OriginUnavailableError),
    ],
)
def test_azures_identity_is_asked_for_a_token_and_its_errors_are_ours(
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    environ: dict[str, str],
    expected: Any,
) -> None:
    for name in ("AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_USERNAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(azure.identity, "DefaultAzureCredential", _Identity)
    monkeypatch.setattr(_Identity, "error", error)

    if isinstance(expected, type):
        with pytest.raises(DamselflyError) as found:
            AzureCredentials()()
        assert type(found.value) is expected
        assert "planted" not in explain(found.value)
    else:
        assert AzureCredentials()() == expected


@pytest.mark.parametrize(
    ("make", "extra", "module"),
    [
        (GoogleCredentials(READ), "gs", "google.auth"),
        (AzureCredentials(), "az", "azure.identity"),
    ],
)
def test_an_sdk_that_is_missing_is_named_by_its_extra(
    make: Any, extra: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)

    with pytest.raises(UsageError, match=rf"damselfly\[{extra}\]"):
        make()
