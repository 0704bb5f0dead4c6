"""Asking an API server: nodes, zones, agents by node, credentials, and what errors say."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from aiohttp import web

from damselfly.agent.zone import zone_of_node
from damselfly.errors import (
    ConfigError,
    DeniedError,
    NotFoundError,
    RemoteProtocolError,
    UnavailableError,
    UsageError,
)
from damselfly.p2p.kubernetes.cluster import ExpiredError, Kubernetes, KubernetesLimits
from damselfly.p2p.kubernetes.names import ServiceName
from tests.fakes.kubernetes_api import KubernetesAPI, endpoint

AGENTS = ServiceName("models", "agents")
ZONE = "topology.kubernetes.io/zone"


@pytest.fixture
async def api() -> AsyncIterator[KubernetesAPI]:
    async with KubernetesAPI() as api:
        yield api


@pytest.fixture
def kubeconfig(api: KubernetesAPI, tmp_path: Path) -> Path:
    return api.kubeconfig(tmp_path / "kube")


@pytest.fixture
async def kubernetes(kubeconfig: Path) -> AsyncIterator[Kubernetes]:
    async with Kubernetes(environ={"KUBECONFIG": str(kubeconfig)}) as kubernetes:
        yield kubernetes


class TestNodes:
    async def test_a_selector_finds_the_nodes_with_that_label(
        self, api: KubernetesAPI, kubernetes: Kubernetes
    ) -> None:
        api.put_node("gpu-1", {"example.com/gpu": "h100"})
        api.put_node("gpu-2", {"example.com/gpu": "h100"})
        api.put_node("cpu-1", {"example.com/gpu": "none"})
        api.put_node("bare")

        assert await kubernetes.nodes("example.com/gpu=h100") == {"gpu-1", "gpu-2"}
        assert await kubernetes.nodes("example.com/gpu=b200") == frozenset()
        assert await kubernetes.nodes() == {"gpu-1", "gpu-2", "cpu-1", "bare"}

    @pytest.mark.parametrize(
        "selector", ["gpu", "=x", "a=b,c=d", "a in (b)", "!a", "a!=b", "a==b", "a=b c", "a=b\n"]
    )
    async def test_what_is_no_selector_is_refused_without_asking(
        self, api: KubernetesAPI, kubernetes: Kubernetes, selector: str
    ) -> None:
        with pytest.raises(UsageError, match="LABEL=VALUE"):
            await kubernetes.nodes(selector)

        assert api.asked == []

    async def test_agents_are_found_by_their_nodes(
        self, api: KubernetesAPI, kubernetes: Kubernetes
    ) -> None:
        api.put_node("gpu-1", {"gpu": "h100"})
        api.put_node("cpu-1")
        api.put_slice("s", [endpoint("10.0.0.1", "gpu-1"), endpoint("10.0.0.2", "cpu-1")])

        nodes = await kubernetes.nodes("gpu=h100")
        agents = await kubernetes.agents(AGENTS)

        assert {each for each, node in agents.items() if node in nodes} == {"10.0.0.1:7460"}


class TestZones:
    async def test_the_zone_is_the_label_of_the_node(
        self, api: KubernetesAPI, kubernetes: Kubernetes
    ) -> None:
        api.put_node("n1.example", {ZONE: "eu-west-1b"})

        assert await zone_of_node(kubernetes, "n1.example") == "eu-west-1b"

    async def test_a_server_that_comes_within_the_patience_is_waited_for(
        self, api: KubernetesAPI, kubernetes: Kubernetes
    ) -> None:
        api.put_node("n1", {ZONE: "z"})
        api.failing = 503
        asked = asyncio.create_task(zone_of_node(kubernetes, "n1", retry_s=0.01))
        async with asyncio.timeout(10):
            while len(api.asked) < 3:
                await asyncio.sleep(0.005)

        api.failing = None

        assert await asked == "z"

    @pytest.mark.parametrize("trouble", ["gone", "slow", "denied", "no_node", "no_label", "odd"])
    async def test_a_zone_that_cannot_be_known_is_none_and_that_is_said(
        self,
        api: KubernetesAPI,
        kubernetes: Kubernetes,
        trouble: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        labels = {"no_label": {"x": "y"}, "odd": {ZONE: "a zone\nof its own"}}
        if trouble != "no_node":
            api.put_node("n1", labels.get(trouble, {ZONE: "z"}))
        if trouble == "denied":
            api.rights.clear()
        if trouble == "slow":
            api.answers.clear()
        if trouble == "gone":
            await api.go_away()

        zone = await zone_of_node(kubernetes, "n1", patience_s=0.3, retry_s=0.05)

        assert zone == ""
        (warning,) = [each for each in caplog.records if each.message == "zone.unknown"]
        assert vars(warning)["node"] == "n1"
        assert vars(warning)["problem"]
        api.answers.set()


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "error"),
        [
            (403, DeniedError),
            (404, NotFoundError),
            (410, ExpiredError),
            (429, UnavailableError),
            (500, UnavailableError),
            (503, UnavailableError),
            (400, RemoteProtocolError),
        ],
    )
    async def test_statuses_have_names_and_the_words_of_the_server(
        self, api: KubernetesAPI, kubernetes: Kubernetes, code: int, error: type[Exception]
    ) -> None:
        api.failing = code

        with pytest.raises(error, match=rf"answers {code} when asked for .*: the server is"):
            await kubernetes.agents(AGENTS)

    async def test_a_token_that_is_refused_twice_is_denied(
        self, api: KubernetesAPI, kubernetes: Kubernetes
    ) -> None:
        api.token = "other"

        with pytest.raises(DeniedError, match="Unauthorized"):
            await kubernetes.nodes()

        assert [each.status for each in api.asked] == [401, 401]

    async def test_nobody_there_is_unavailable(
        self, api: KubernetesAPI, kubernetes: Kubernetes
    ) -> None:
        await api.go_away()

        with pytest.raises(UnavailableError, match="asking the API server for the nodes"):
            await kubernetes.nodes()

    async def test_a_slow_answer_is_given_up(self, api: KubernetesAPI, kubeconfig: Path) -> None:
        api.answers.clear()
        limits = KubernetesLimits(answer_s=0.1)
        async with Kubernetes(limits, environ={"KUBECONFIG": str(kubeconfig)}) as kubernetes:
            with pytest.raises(UnavailableError):
                await kubernetes.nodes()
        api.answers.set()

    @pytest.mark.parametrize(
        "body", [b"", b"<html>", b"[]", b'{"items": 7}', b'{"items": [{}]}', b"[" * 100_000]
    )
    async def test_nonsense_is_refused(self, tmp_path: Path, body: bytes) -> None:
        async def nonsense(_: web.Request) -> web.Response:
            return web.Response(body=body)

        async with Served(nonsense, tmp_path) as kubernetes:
            with pytest.raises(RemoteProtocolError):
                await kubernetes.nodes()
            with pytest.raises(RemoteProtocolError):
                await kubernetes.agents(AGENTS)

    async def test_an_answer_without_end_is_refused(self, tmp_path: Path) -> None:
        async def endless(_: web.Request) -> web.Response:
            return web.Response(body=b" " * 10_000)

        limits = KubernetesLimits(list_bytes_max=9_000, event_bytes_max=9_000)
        async with Served(endless, tmp_path, limits) as kubernetes:
            with pytest.raises(RemoteProtocolError, match="9000 bytes"):
                await kubernetes.nodes()
            with pytest.raises(RemoteProtocolError, match="without end"):
                async with aclosing(kubernetes.watch_slices(AGENTS, "1")) as events:
                    await anext(events)

    @pytest.mark.parametrize(
        "line", [b"nonsense\n", b"[]\n", b"{}\n", b'{"type":7}\n', b'{"type":"ERROR"}\n']
    )
    async def test_a_nonsense_event_is_refused(self, tmp_path: Path, line: bytes) -> None:
        async def nonsense(_: web.Request) -> web.Response:
            return web.Response(body=line)

        async with Served(nonsense, tmp_path) as kubernetes:
            with pytest.raises(RemoteProtocolError):
                async with aclosing(kubernetes.watch_slices(AGENTS, "1")) as events:
                    await anext(events)


class Served:
    """A client of a server that answers everything with one handler."""

    def __init__(
        self, handler: object, folder: Path, limits: KubernetesLimits | None = None
    ) -> None:
        self._handler = handler
        self._folder = folder
        self._limits = limits

    async def __aenter__(self) -> Kubernetes:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._handler)  # type: ignore[arg-type]
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        path = self._folder / "kubeconfig"
        path.write_text(
            "{apiVersion: v1, kind: Config, current-context: c,"
            " contexts: [{name: c, context: {cluster: c, user: u}}],"
            f" clusters: [{{name: c, cluster: {{server: '{url}'}}}}],"
            " users: [{name: u, user: {token: t}}]}"
        )
        self._client = Kubernetes(self._limits, environ={"KUBECONFIG": str(path)})
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self._runner.cleanup()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a certificate for 127.0.0.1 that signs itself, and of its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", "/CN=api", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(folder / "key"), "-out", str(folder / "ca.crt")),
        ],
        check=True,
        capture_output=True,
    )
    return folder


class TestCredentials:
    async def test_a_pod_asks_with_its_service_account_over_tls(
        self, certificate: Path, tmp_path: Path
    ) -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate / "ca.crt", certificate / "key")
        (tmp_path / "ca.crt").write_bytes((certificate / "ca.crt").read_bytes())
        (tmp_path / "token").write_text("t0")
        async with KubernetesAPI(tls=tls) as api:
            environ = {
                "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                "KUBERNETES_SERVICE_PORT": str(api.port),
            }
            api.put_node("n1")
            async with Kubernetes(environ=environ, service_account=tmp_path) as kubernetes:
                before = await kubernetes.nodes()
                api.token = "t1"
                (tmp_path / "token").write_text("t1")
                after = await kubernetes.nodes()

        assert before == after == {"n1"}
        assert [each.status for each in api.asked] == [200, 401, 200]

    async def test_a_server_of_another_authority_is_not_asked(
        self, certificate: Path, tmp_path: Path
    ) -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate / "ca.crt", certificate / "key")
        async with KubernetesAPI(tls=tls) as api:
            environ = {"KUBECONFIG": str(api.kubeconfig(tmp_path))}
            async with Kubernetes(environ=environ) as kubernetes:
                with pytest.raises(UnavailableError):
                    await kubernetes.nodes()

        assert api.asked == []

    @pytest.mark.parametrize("content", [None, "", "nonsense", "{}", "[", "contexts: 7"])
    async def test_a_kubeconfig_that_is_none_is_named(
        self, tmp_path: Path, content: str | None
    ) -> None:
        path = tmp_path / "kubeconfig"
        if content is not None:
            path.write_text(content)
        async with Kubernetes(environ={"KUBECONFIG": str(path)}) as kubernetes:
            with pytest.raises(ConfigError, match="kubeconfig"):
                await kubernetes.check()

    async def test_a_pod_without_a_token_is_told_so(self, tmp_path: Path) -> None:
        environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
        async with Kubernetes(environ=environ, service_account=tmp_path) as kubernetes:
            with pytest.raises(ConfigError, match="the pod"):
                await kubernetes.check()


def test_without_the_extra_it_is_said_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['kubernetes_asyncio'] = None\n"
        "from damselfly.errors import UsageError\n"
        "from damselfly.p2p.kubernetes.cluster import Kubernetes\n"
        "try: Kubernetes()\n"
        "except UsageError as exc: print(exc)\n"
    )

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "pip install 'damselfly[kubernetes]'" in told.stdout


def test_the_extra_is_imported_only_when_it_is_used() -> None:
    code = "import sys, damselfly.agent.daemon; print('kubernetes_asyncio' in sys.modules)"

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert told.stdout == "False\n"
