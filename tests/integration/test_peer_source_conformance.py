"""Every source of peers, held to what all of them do."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from damselfly.clock import SystemClock
from damselfly.p2p.address import split_address
from damselfly.p2p.discovery import DNSPeers, FilePeers, StaticPeers
from damselfly.p2p.kubernetes.cluster import Kubernetes
from damselfly.p2p.kubernetes.endpoint_slices import EndpointSlicesLimits
from damselfly.p2p.kubernetes.names import ServiceName
from damselfly.p2p.kubernetes.peers import KubernetesPeers
from tests.conformance.peer_source import (
    ONE,
    ChangingPeerSourceConformance,
    Listing,
    PeerSourceConformance,
)
from tests.fakes.kubernetes_api import KubernetesAPI, endpoint


class TestStaticPeers(PeerSourceConformance):
    @pytest.fixture
    async def listing(self) -> Listing:
        async def put(_: frozenset[str]) -> None:
            raise AssertionError("a list on the command line does not change")

        return Listing(StaticPeers(ONE), put)


class TestFilePeers(ChangingPeerSourceConformance):
    @pytest.fixture
    async def listing(self, tmp_path: Path) -> Listing:
        path = tmp_path / "peers"
        path.write_text("\n".join(ONE))

        async def put(addresses: frozenset[str]) -> None:
            new = tmp_path / "new"
            new.write_text("\n".join(addresses))
            new.rename(path)

        async def fail() -> None:
            path.unlink()

        return Listing(FilePeers(path, poll_interval_s=0.01), put, fail)


class TestDNSPeers(ChangingPeerSourceConformance):
    """The resolver of the machine cannot be told what to answer, so the loop's stands in for it."""

    @pytest.fixture
    async def listing(self, monkeypatch: pytest.MonkeyPatch) -> Listing:
        answer: list[frozenset[str] | None] = [ONE]

        async def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
            assert host == "agents.models.svc"
            found = answer[0]
            if found is None:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            hosts = (split_address(each)[0] for each in found)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]

        async def put(addresses: frozenset[str]) -> None:
            answer[0] = addresses

        async def fail() -> None:
            answer[0] = None

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        return Listing(DNSPeers("agents.models.svc", 7460, poll_interval_s=0.01), put, fail)


class TestKubernetesPeers(ChangingPeerSourceConformance):
    @pytest.fixture
    async def listing(self, tmp_path: Path) -> AsyncIterator[Listing]:
        limits = EndpointSlicesLimits(back_off_s_min=0.01, back_off_s_max=0.05)
        async with KubernetesAPI() as api:
            environ = {"KUBECONFIG": str(api.kubeconfig(tmp_path))}
            async with Kubernetes(environ=environ) as kubernetes:
                name = ServiceName("models", "agents")
                source = KubernetesPeers(kubernetes, name, SystemClock(), limits=limits)

                async def put(addresses: frozenset[str]) -> None:
                    hosts = (split_address(each)[0] for each in sorted(addresses))
                    api.put_slice("agents-x", [endpoint(host) for host in hosts])
                    await api.come_back()

                async def fail() -> None:
                    await api.go_away()

                api.put_slice("agents-x", [endpoint("127.0.0.1")])
                yield Listing(source, put, fail)
