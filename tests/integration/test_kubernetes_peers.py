"""Peers by a Service of Kubernetes, against a real server of lists and watches on its bad days."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from damselfly.clock import SystemClock
from damselfly.p2p.kubernetes.cluster import Kubernetes, KubernetesLimits
from damselfly.p2p.kubernetes.endpoint_slices import EndpointSlicesLimits
from damselfly.p2p.kubernetes.names import ServiceName
from damselfly.p2p.kubernetes.peers import KubernetesPeers
from tests.fakes.kubernetes_api import NODES, SLICES, KubernetesAPI, endpoint

AGENTS = ServiceName("models", "agents")
QUICK = EndpointSlicesLimits(back_off_s_min=0.02, back_off_s_max=0.1)
PATIENCE_S = 10.0


@dataclass
class Watched:
    """A source that is being followed, and everything that it told."""

    told: list[frozenset[str]] = field(default_factory=list[frozenset[str]])
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, *addresses: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.told or self.told[-1] != frozenset(addresses):
                self.news.clear()
                await self.news.wait()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


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


@asynccontextmanager
async def watched(
    kubernetes: Kubernetes, limits: EndpointSlicesLimits = QUICK
) -> AsyncIterator[Watched]:
    source = KubernetesPeers(kubernetes, AGENTS, SystemClock(), limits=limits, jitter=lambda: 0.5)
    found = Watched()

    async def follow() -> None:
        async with aclosing(source.changes()) as changes:
            async for addresses in changes:
                found.told.append(addresses)
                found.news.set()

    task = asyncio.create_task(follow())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), task.exception()


async def test_what_is_listed_is_told_and_so_is_every_change(
    api: KubernetesAPI, kubernetes: Kubernetes
) -> None:
    api.put_slice("agents-a", [endpoint("10.0.0.1"), endpoint("10.0.0.2")])
    api.put_slice("others-a", [endpoint("10.9.9.9")], service="others")
    async with watched(kubernetes) as source:
        await source.until("10.0.0.1:7460", "10.0.0.2:7460")

        api.put_slice("agents-b", [endpoint("10.0.0.3")])
        await source.until("10.0.0.1:7460", "10.0.0.2:7460", "10.0.0.3:7460")
        api.put_slice("agents-a", [endpoint("10.0.0.2")])
        await source.until("10.0.0.2:7460", "10.0.0.3:7460")
        api.delete_slice("agents-b")
        await source.until("10.0.0.2:7460")

        assert api.verbs() == ["list", "watch"]


async def test_a_new_pod_is_known_within_a_second(
    api: KubernetesAPI, kubernetes: Kubernetes
) -> None:
    async with watched(kubernetes, EndpointSlicesLimits()) as source:
        await source.until()
        await until(lambda: api.watch_count == 1)

        async with asyncio.timeout(1.0):
            api.put_slice("agents-a", [endpoint("10.0.0.1")])
            await source.until("10.0.0.1:7460")


async def test_a_slice_that_leaves_the_service_leaves_the_list(
    api: KubernetesAPI, kubernetes: Kubernetes
) -> None:
    api.put_slice("s", [endpoint("10.0.0.1")])
    async with watched(kubernetes) as source:
        await source.until("10.0.0.1:7460")

        api.put_slice("s", [endpoint("10.0.0.1")], service="others")

        await source.until()


async def test_nothing_is_told_twice(api: KubernetesAPI, kubernetes: Kubernetes) -> None:
    api.put_slice("s", [endpoint("10.0.0.1", conditions={"ready": False})])
    async with watched(kubernetes) as source:
        await source.until("10.0.0.1:7460")
        await until(lambda: api.watch_count == 1)

        api.put_slice("s", [endpoint("10.0.0.1")])
        api.close_watches()
        api.put_slice("s", [endpoint("10.0.0.1"), endpoint("10.0.0.2")])
        await source.until("10.0.0.1:7460", "10.0.0.2:7460")

        assert len(source.told) == 2


@pytest.mark.parametrize("how", ["cut", "close"])
async def test_a_watch_that_ends_goes_on_from_the_bookmark(
    api: KubernetesAPI, kubernetes: Kubernetes, how: str
) -> None:
    api.put_slice("s", [endpoint("10.0.0.1")])
    async with watched(kubernetes) as source:
        await source.until("10.0.0.1:7460")
        await until(lambda: api.watch_count == 1)
        api.pass_versions(500)
        api.bookmark()
        api.forget()
        marked = api.version

        api.cut_watches() if how == "cut" else api.close_watches()
        await until(lambda: api.verbs().count("watch") == 2)
        api.put_slice("s", [endpoint("10.0.0.2")])
        await source.until("10.0.0.2:7460")

        assert api.verbs().count("list") == 1
        assert api.asked[-1].query["resourceVersion"] == str(marked)


@pytest.mark.parametrize("by_event", [False, True], ids=["status", "event"])
async def test_a_forgotten_version_is_listed_again(
    api: KubernetesAPI, kubernetes: Kubernetes, by_event: bool
) -> None:
    api.expires_by_event = by_event
    api.put_slice("s", [endpoint("10.0.0.1")])
    async with watched(kubernetes) as source:
        await source.until("10.0.0.1:7460")
        await until(lambda: api.watch_count == 1)
        api.answers.clear()
        api.cut_watches()
        await until(lambda: api.watch_count == 0)
        api.put_slice("s", [endpoint("10.0.0.2")])
        api.forget()

        api.answers.set()

        await source.until("10.0.0.2:7460")
        assert api.verbs() == ["list", "watch", "watch", "list"] or api.verbs()[-2:] == [
            "list",
            "watch",
        ]


async def test_a_watch_that_is_told_410_on_the_way_lists_again(
    api: KubernetesAPI, kubernetes: Kubernetes
) -> None:
    async with watched(kubernetes) as source:
        await source.until()
        await until(lambda: api.watch_count == 1)

        api.expire_watches()
        await until(lambda: api.verbs().count("list") == 2 and api.watch_count == 1)
        api.put_slice("s", [endpoint("10.0.0.1")])

        await source.until("10.0.0.1:7460")


async def test_a_server_that_is_gone_for_long_keeps_the_last_view(
    api: KubernetesAPI, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    api.put_slice("s", [endpoint("10.0.0.1")])
    async with watched(kubernetes) as source:
        await source.until("10.0.0.1:7460")
        await until(lambda: api.watch_count == 1)

        await api.go_away()
        api.put_slice("s", [endpoint("10.0.0.2")])
        api.forget()
        await asyncio.sleep(1.0)  # Ten times the longest back-off: hours, for these limits.
        told = list(source.told)
        await api.come_back()
        await source.until("10.0.0.2:7460")

        assert told == [frozenset({"10.0.0.1:7460"})]
        warnings = [each for each in caplog.records if each.message == "peers.unwatched"]
        assert 1 <= len(warnings) <= 4, "hours of the same are told once"


async def test_a_server_that_is_not_there_at_first_is_waited_for(
    api: KubernetesAPI, kubernetes: Kubernetes
) -> None:
    api.put_slice("s", [endpoint("10.0.0.1")])
    await api.go_away()
    async with watched(kubernetes) as source:
        await asyncio.sleep(0.3)
        told = list(source.told)

        await api.come_back()

        await source.until("10.0.0.1:7460")
        assert told == []


async def test_an_overloaded_server_is_not_asked_for_the_list(
    api: KubernetesAPI, kubernetes: Kubernetes
) -> None:
    async with watched(kubernetes) as source:
        await source.until()
        await until(lambda: api.watch_count == 1)

        api.failing = 429
        api.cut_watches()
        await until(lambda: len(api.asked) > 4)
        api.failing = None
        await until(lambda: api.watch_count == 1)

        assert api.verbs().count("list") == 1


async def test_a_rotated_token_is_read_again(
    api: KubernetesAPI, kubernetes: Kubernetes, kubeconfig: Path
) -> None:
    async with watched(kubernetes) as source:
        await source.until()
        await until(lambda: api.watch_count == 1)

        api.token = "t1"
        (kubeconfig.parent / "token").write_text("t1")
        api.put_slice("s", [endpoint("10.0.0.1")])
        api.close_watches()
        await until(lambda: [each.status for each in api.asked][-2:] == [401, 200])
        await source.until("10.0.0.1:7460")

        assert api.verbs().count("list") == 1


async def test_a_token_that_is_not_written_yet_is_waited_for(
    api: KubernetesAPI, kubernetes: Kubernetes, kubeconfig: Path
) -> None:
    api.token = "t1"
    api.put_slice("s", [endpoint("10.0.0.1")])
    async with watched(kubernetes) as source:
        await until(lambda: len(api.asked) >= 4)

        (kubeconfig.parent / "token").write_text("t1")

        await source.until("10.0.0.1:7460")


async def test_missing_rights_are_named_and_waited_for(
    api: KubernetesAPI, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    rights, api.rights = api.rights, set[tuple[str, str]]()
    api.put_slice("s", [endpoint("10.0.0.1")])
    async with watched(kubernetes) as source:
        await until(lambda: len(api.asked) >= 3)
        api.rights = rights

        await source.until("10.0.0.1:7460")

    (warning,) = [each for each in caplog.records if each.message == "peers.unwatched"]
    assert "endpointslices is forbidden: cannot list resource" in str(vars(warning)["error"])


async def test_the_rights_that_are_documented_are_enough(
    api: KubernetesAPI, kubernetes: Kubernetes
) -> None:
    api.rights = {("list", SLICES), ("watch", SLICES)}
    async with watched(kubernetes) as source:
        await source.until()
        await until(lambda: api.watch_count == 1)
        api.expire_watches()
        await until(lambda: api.verbs().count("watch") == 2)
        api.put_slice("s", [endpoint("10.0.0.1")])
        await source.until("10.0.0.1:7460")
    api.rights = {("get", NODES)}
    api.put_node("n1", {"topology.kubernetes.io/zone": "z"})
    assert await kubernetes.zone_of("n1") == "z"
    api.rights = {("list", NODES)}
    assert await kubernetes.nodes() == {"n1"}

    assert {each.status for each in api.asked} == {200}


async def test_a_silent_connection_is_given_up(api: KubernetesAPI, kubeconfig: Path) -> None:
    limits = KubernetesLimits(silence_s=0.2)
    async with (
        Kubernetes(limits, environ={"KUBECONFIG": str(kubeconfig)}) as kubernetes,
        watched(kubernetes) as source,
    ):
        await source.until()

        await until(lambda: api.verbs().count("watch") >= 2)

        assert api.verbs().count("list") == 1


async def test_a_slice_of_a_thousand_endpoints_comes_through_a_watch(
    api: KubernetesAPI, kubernetes: Kubernetes
) -> None:
    many = [f"10.1.{number // 250}.{number % 250}" for number in range(1000)]
    async with watched(kubernetes) as source:
        await source.until()
        await until(lambda: api.watch_count == 1)

        api.put_slice("s", [endpoint(each, f"node-{each}", pod=f"pod-{each}") for each in many])

        await source.until(*(f"{each}:7460" for each in many))


async def test_a_slice_without_our_port_is_named(
    api: KubernetesAPI, kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    api.put_slice("bad", [endpoint("10.0.0.1")], ports=[])
    api.put_slice("good", [endpoint("10.0.0.2")])

    async with watched(kubernetes) as source:
        await source.until("10.0.0.2:7460")

    (warning,) = [each for each in caplog.records if each.message == "peers.slice_ignored"]
    assert vars(warning)["slice"] == "bad"
