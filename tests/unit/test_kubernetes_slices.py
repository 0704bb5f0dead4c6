"""The core of the watch on a Service's EndpointSlices: what it asks for next, and whom it sees."""

from typing import Any, cast

import pytest

from damselfly.errors import RemoteProtocolError
from damselfly.p2p.kubernetes.endpoint_slices import (
    EndpointSlices,
    EndpointSlicesLimits,
    List,
    Wait,
    Watch,
)
from damselfly.p2p.kubernetes.endpoints import EndpointSlice

PEERS = {"name": "peers", "port": 7460, "protocol": "TCP"}
ADMIN = {"name": "admin", "port": 7461, "protocol": "TCP"}


def made(
    name: str = "s",
    *hosts: str,
    version: str = "5",
    family: str = "IPv4",
    ports: object = (PEERS,),
    node: str = "",
    pods: bool = False,
) -> dict[str, Any]:
    endpoints = [
        {
            "addresses": [host],
            **({"nodeName": node} if node else {}),
            **({"targetRef": {"uid": f"pod-{number}"}} if pods else {}),
        }
        for number, host in enumerate(hosts)
    ]
    return {
        "metadata": {"name": name, "resourceVersion": version},
        "addressType": family,
        "ports": list(cast("tuple[object, ...]", ports)) if isinstance(ports, tuple) else ports,
        "endpoints": endpoints,
    }


def listed(*slices: object, version: str = "10", prefers_ipv6: bool = False) -> EndpointSlices:
    core = EndpointSlices(prefers_ipv6=prefers_ipv6)
    core.listed(slices, version, 0.0)
    return core


NONSENSE: list[object] = [
    None,
    [],
    {},
    {"metadata": {}},
    {"metadata": {"name": "", "resourceVersion": "1"}},
    {"metadata": {"name": "s"}},
    {"metadata": {"name": "s", "resourceVersion": 7}},
    made() | {"endpoints": {}},
    made() | {"endpoints": [7]},
    made() | {"ports": 7},
    made("s", *(["10.0.0.1"] * 1001)),
]


class TestWhoIsSeen:
    def test_every_endpoint_counts_whatever_its_conditions(self) -> None:
        value = made("s", "10.0.0.1", "10.0.0.2", "10.0.0.3")
        for entry, conditions in zip(
            value["endpoints"],
            (
                {"ready": False, "serving": False, "terminating": False},
                {"ready": False, "serving": True, "terminating": True},
                None,
            ),
            strict=True,
        ):
            entry["conditions"] = conditions

        assert set(listed(value).view) == {"10.0.0.1:7460", "10.0.0.2:7460", "10.0.0.3:7460"}

    def test_the_port_named_peers_goes_before_others(self) -> None:
        assert set(listed(made("s", "10.0.0.1", ports=(ADMIN, PEERS))).view) == {"10.0.0.1:7460"}

    def test_a_single_port_may_have_any_name(self) -> None:
        assert set(listed(made("s", "10.0.0.1", ports=(ADMIN,))).view) == {"10.0.0.1:7461"}

    @pytest.mark.parametrize(
        "ports",
        [
            None,
            (),
            (ADMIN, {"name": "x", "port": 1}),
            ({"name": "peers", "port": None},),
            ({"name": "peers", "port": 0},),
            ({"name": "peers", "port": True},),
            ({"name": "peers", "port": "7460"},),
        ],
    )
    def test_a_slice_without_our_port_lists_nobody_and_says_why(self, ports: object) -> None:
        core = listed(made("bad", "10.0.0.1", ports=ports), made("good", "10.0.0.2"))

        assert set(core.view) == {"10.0.0.2:7460"}
        assert list(core.problems) == ["bad"]

    def test_slices_are_merged_and_an_address_in_two_of_them_is_one(self) -> None:
        core = listed(
            made("a", "10.0.0.1", "10.0.0.2"), made("b", "10.0.0.2", "10.0.0.3", node="n1")
        )

        assert core.view == {"10.0.0.1:7460": "", "10.0.0.2:7460": "n1", "10.0.0.3:7460": "n1"}

    def test_ipv6_addresses_are_bracketed_and_written_one_way(self) -> None:
        core = listed(made("s", "FD00:0:0::1", "fd00::1", family="IPv6"))

        assert set(core.view) == {"[fd00::1]:7460"}

    @pytest.mark.parametrize(
        ("prefers_ipv6", "seen"), [(False, "10.0.0.1:7460"), (True, "[fd00::1]:7460")]
    )
    def test_a_pod_of_both_families_is_seen_once(self, prefers_ipv6: bool, seen: str) -> None:
        core = listed(
            made("four", "10.0.0.1", pods=True),
            made("six", "fd00::1", family="IPv6", pods=True),
            prefers_ipv6=prefers_ipv6,
        )

        assert set(core.view) == {seen}

    def test_a_pod_of_the_other_family_alone_is_seen(self) -> None:
        core = listed(made("four", "10.0.0.1"), made("six", "fd00::9", family="IPv6", pods=True))

        assert set(core.view) == {"10.0.0.1:7460", "[fd00::9]:7460"}

    @pytest.mark.parametrize("host", ["", "nonsense", "10.0.0.1/24", "fe80::1%eth0", "1.2.3"])
    def test_an_address_that_is_none_is_passed_over(self, host: str) -> None:
        assert set(listed(made("s", host, "10.0.0.1")).view) == {"10.0.0.1:7460"}

    def test_names_of_hosts_are_left_out(self) -> None:
        core = listed(made("s", "host.example", family="FQDN"))

        assert core.view == {}
        assert "s" in core.problems

    def test_an_empty_slice_is_written_with_nulls(self) -> None:
        value = made("s") | {"endpoints": None}

        assert listed(value).view == {}

    @pytest.mark.parametrize("value", NONSENSE)
    def test_what_is_no_slice_is_refused(self, value: object) -> None:
        with pytest.raises(RemoteProtocolError):
            EndpointSlice.parse(value)


class TestWhatIsAskedNext:
    def test_first_the_list_then_a_watch_from_its_version(self) -> None:
        core = EndpointSlices()

        first = core.next_command(0.0)
        core.listed([made("s", "10.0.0.1")], "77", 1.0)

        assert first == List()
        assert core.next_command(1.0) == Watch("77")

    def test_events_and_bookmarks_move_the_version(self) -> None:
        core = listed(version="10")
        core.next_command(0.0)

        core.event("ADDED", made("s", "10.0.0.1", version="12"), 1.0)
        core.event("BOOKMARK", {"metadata": {"resourceVersion": "20"}}, 2.0)
        core.closed(100.0, jitter=0.0)

        assert core.next_command(100.0) == Watch("20")
        assert set(core.view) == {"10.0.0.1:7460"}

    def test_a_watch_that_lasted_goes_on_at_once_when_the_server_ends_it(self) -> None:
        core = listed()
        core.next_command(0.0)

        core.closed(300.0, jitter=0.9)

        assert core.next_command(300.0) == Watch("10")

    def test_a_watch_that_is_ended_at_once_again_and_again_is_not_asked_in_a_loop(self) -> None:
        core = listed()
        now = 0.0
        waits: list[float] = []
        for _ in range(6):
            assert core.next_command(now) == Watch("10")
            core.closed(now, jitter=0.0)
            command = core.next_command(now)
            assert isinstance(command, Wait)
            waits.append(command.until_s - now)
            now = command.until_s

        assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]

    def test_waits_are_bounded_and_spread_by_the_jitter(self) -> None:
        limits = EndpointSlicesLimits(back_off_s_min=1.0, back_off_s_max=8.0)
        found: list[float] = []
        for jitter in (0.0, 0.999):
            core = EndpointSlices(limits=limits)
            for _ in range(40):
                core.failed(0.0, jitter=jitter)
            command = core.next_command(0.0)
            assert isinstance(command, Wait)
            found.append(command.until_s)

        assert found[0] == pytest.approx(4.0)
        assert found[1] == pytest.approx(8.0, rel=0.01)

    def test_an_outage_of_hours_changes_nothing_that_is_seen(self) -> None:
        core = listed(made("s", "10.0.0.1"))
        now = 0.0
        while now < 6 * 3600:
            command = core.next_command(now)
            now = command.until_s if isinstance(command, Wait) else now + 0.001
            if not isinstance(command, Wait):
                core.failed(now, jitter=0.5)

        assert set(core.view) == {"10.0.0.1:7460"}

    def test_trouble_of_the_server_keeps_the_version(self) -> None:
        core = listed()
        core.next_command(0.0)

        core.failed(10.0, jitter=0.0)

        assert core.next_command(60.0) == Watch("10")

    def test_a_forgotten_version_is_followed_by_a_list(self) -> None:
        core = listed(made("s", "10.0.0.1"))
        core.next_command(0.0)

        core.failed(10.0, jitter=0.0, is_version_bad=True)

        assert set(core.view) == {"10.0.0.1:7460"}
        assert core.next_command(60.0) == List()

    def test_an_event_ends_a_row_of_failures(self) -> None:
        core = listed()
        for now in range(8):
            core.failed(float(now), jitter=0.0)
        assert core.next_command(1000.0) == Watch("10")

        core.event("ADDED", made("s", version="11"), 1000.5)
        core.failed(1001.0, jitter=0.0)

        assert core.next_command(1001.0) == Wait(1001.25)

    def test_after_an_hour_the_list_is_asked_for_anyway(self) -> None:
        core = listed()
        core.next_command(3500.0)

        core.closed(3700.0, jitter=0.0)

        assert core.next_command(3700.0) == List()

    def test_a_list_replaces_everything(self) -> None:
        core = listed(made("a", "10.0.0.1"), made("b", "10.0.0.2"))

        core.listed([made("b", "10.0.0.3")], "20", 5.0)

        assert set(core.view) == {"10.0.0.3:7460"}

    @pytest.mark.parametrize("kind", ["", "ERROR", "added", "X" * 100])
    def test_an_unknown_event_is_refused(self, kind: str) -> None:
        with pytest.raises(RemoteProtocolError):
            listed().event(kind, made(), 0.0)

    def test_a_deletion_of_what_was_never_seen_is_no_error(self) -> None:
        core = listed()

        core.event("DELETED", made("s", version="11"), 1.0)

        assert core.next_command(1.0) == Watch("11")

    def test_there_are_no_more_slices_than_the_limit(self) -> None:
        core = EndpointSlices(limits=EndpointSlicesLimits(slices_max=1))
        core.listed([made("a", "10.0.0.1")], "10", 0.0)

        core.event("MODIFIED", made("a", "10.0.0.2", version="11"), 1.0)
        with pytest.raises(RemoteProtocolError):
            core.event("ADDED", made("b", version="12"), 1.0)
        with pytest.raises(RemoteProtocolError):
            core.listed([made("a"), made("b")], "20", 2.0)
        assert set(core.view) == {"10.0.0.2:7460"}
