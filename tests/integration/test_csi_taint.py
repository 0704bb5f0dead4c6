"""The startup taint: taken away over HTTPS from an API server of the tests, and nothing else is."""

import asyncio
import http.server
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from damselfly.clock import SystemClock
from damselfly.csi.calls import Calls
from damselfly.csi.driver import _remove_taint
from damselfly.csi.options import Options
from damselfly.csi.proto import registration_pb2
from damselfly.csi.registration import Registration
from damselfly.csi.taint import Cluster, keep_removing, patch_of, remove_taint
from damselfly.errors import ConfigError, DeniedError, RemoteProtocolError, UnavailableError
from damselfly.metrics import DriverMetrics
from tests.integration.csi_driver_node import wait_until

KEY = "csi.damselfly.dev/agent-not-ready"
OURS = {"key": KEY, "effect": "NoSchedule"}
OTHER = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "2026"}

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl makes the certificate"
)


class APIServer:
    """One node, read and patched over HTTPS by who has the token."""

    def __init__(self, folder: Path) -> None:
        self.account = folder
        self.node: dict[str, Any] = {"kind": "Node", "spec": {"taints": [OTHER, OURS]}}
        self.changes_between = False
        self.answers_instead: HTTPStatus | None = None
        self.seen: list[str] = []
        key, certificate = folder / "key.pem", folder / "ca.crt"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "1"),
                *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=api"),
                *("-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", str(key), "-out", str(certificate)),
            ],
            check=True,
            capture_output=True,
        )
        (folder / "token").write_text("the-account's-token\n")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.answer(self, None)

            def do_PATCH(self) -> None:
                length = int(self.headers["Content-Length"])
                api.answer(self, json.loads(self.rfile.read(length)))

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def cluster(self) -> Cluster:
        return Cluster(host="127.0.0.1", port=self.server.server_port, account=self.account)

    def answer(self, request: http.server.BaseHTTPRequestHandler, patch: Any) -> None:
        self.seen.append(f"{request.command} {request.path}")
        status = self.answers_instead or HTTPStatus.OK
        if request.headers["Authorization"] != "Bearer the-account's-token":
            status = HTTPStatus.UNAUTHORIZED
        elif patch is not None:
            assert request.headers["Content-Type"] == "application/json-patch+json"
            test, replace = patch
            if self.changes_between or test["value"] != self.node["spec"]["taints"]:
                status = HTTPStatus.UNPROCESSABLE_ENTITY
            else:
                self.node["spec"]["taints"] = replace["value"]
        request.send_response(status)
        request.end_headers()
        request.wfile.write(json.dumps(self.node).encode())

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[APIServer]:
    api = APIServer(tmp_path)
    try:
        yield api
    finally:
        api.close()


@needs_openssl
def test_our_taint_goes_and_others_stay(api: APIServer) -> None:
    assert remove_taint(api.cluster, "node-1", KEY)

    assert api.node["spec"]["taints"] == [OTHER]
    assert api.seen == ["GET /api/v1/nodes/node-1", "PATCH /api/v1/nodes/node-1"]


@needs_openssl
def test_a_node_without_it_is_not_written_to(api: APIServer) -> None:
    api.node["spec"]["taints"] = [OTHER]

    assert not remove_taint(api.cluster, "node-1", KEY)

    assert api.seen == ["GET /api/v1/nodes/node-1"]


@needs_openssl
def test_taints_that_change_meanwhile_are_worth_another_try(api: APIServer) -> None:
    api.changes_between = True

    with pytest.raises(UnavailableError, match="422"):
        remove_taint(api.cluster, "node-1", KEY)

    assert OURS in api.node["spec"]["taints"]


@needs_openssl
def test_it_is_tried_until_the_taint_is_gone(api: APIServer) -> None:
    api.answers_instead = HTTPStatus.SERVICE_UNAVAILABLE
    trying = threading.Thread(target=keep_removing, args=(api.cluster, "node-1", KEY, 0.01))
    trying.start()
    wait_until(lambda: len(api.seen) >= 3, "it gives up")
    api.answers_instead = None

    trying.join()

    assert api.node["spec"]["taints"] == [OTHER]


@needs_openssl
async def test_the_taint_stays_until_the_kubelet_has_registered_us(api: APIServer) -> None:
    options = Options(endpoint=Path("/x"), agent_socket="/x", node_id="node-1")
    registration = Registration(options, Calls(DriverMetrics(), SystemClock()))
    removal = asyncio.create_task(_remove_taint(registration, api.cluster, "node-1", KEY))
    status = registration_pb2.RegistrationStatus(plugin_registered=False, error="not yet")

    await registration.NotifyRegistrationStatus(status, None)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    before = list(api.seen)
    status.plugin_registered = True
    await registration.NotifyRegistrationStatus(status, None)  # type: ignore[arg-type]
    await removal
    await asyncio.to_thread(wait_until, lambda: api.node["spec"]["taints"] == [OTHER], "it stays")

    assert before == []


@needs_openssl
def test_an_account_that_may_not_is_told_what_it_needs(api: APIServer) -> None:
    api.answers_instead = HTTPStatus.FORBIDDEN

    with pytest.raises(DeniedError, match="get and patch on nodes"):
        remove_taint(api.cluster, "node-1", KEY)


@needs_openssl
def test_a_server_with_another_certificate_gets_no_token(api: APIServer, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    other = APIServer(stranger)
    try:
        cluster = Cluster(host="127.0.0.1", port=other.server.server_port, account=api.account)

        with pytest.raises(UnavailableError):
            remove_taint(cluster, "node-1", KEY)
    finally:
        other.close()

    assert other.seen == []


def test_without_a_server_it_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="GET /api/v1/nodes/n"):
        remove_taint(Cluster(host="127.0.0.1", port=1, account=tmp_path), "n", KEY)


def test_outside_of_a_cluster_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="not in a cluster"):
        Cluster.of({})


@pytest.mark.parametrize("node", [{}, {"spec": {}}, {"spec": {"taints": []}}, {"spec": None}])
def test_a_node_without_taints_needs_no_patch(node: object) -> None:
    assert patch_of(node, KEY) is None


def test_what_is_no_node_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        patch_of([], KEY)


def test_every_taint_of_the_key_goes_whatever_its_effect() -> None:
    taints = [OURS, OTHER, {**OURS, "effect": "NoExecute"}]

    patch = patch_of({"spec": {"taints": taints}}, KEY)

    assert patch is not None
    assert patch[1]["value"] == [OTHER]
