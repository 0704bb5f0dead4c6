"""The agent's configuration: who wins, what is refused, and how it is said."""

import socket
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from damselfly.agent.config import (
    AgentConfig,
    PeerFile,
    PeerList,
    PeerName,
    PeerService,
    ZoneOfNode,
    load_config,
)
from damselfly.agent.quantities import (
    parse_bytes,
    parse_count,
    parse_mode,
    parse_seconds,
    parse_share,
    show_bytes,
)
from damselfly.agent.settings import SETTINGS
from damselfly.errors import ConfigError, explain
from damselfly.p2p.kubernetes.names import ServiceName

GIB = 1 << 30
NEEDED = {"agent.listen": "127.0.0.1:7460", "store.path": "/models"}


def loaded(
    flags: dict[str, str] | None = None,
    environ: dict[str, str] | None = None,
    file: Path | None = None,
) -> AgentConfig:
    return load_config(NEEDED | (flags or {}), environ or {}, file, uid=0)


def refused(
    flags: dict[str, str] | None = None,
    environ: dict[str, str] | None = None,
    file: Path | None = None,
) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(flags, environ, file)
    return explain(caught.value)


def toml(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    return file


class TestWhoSaysWhat:
    def test_what_is_needed_is_enough(self) -> None:
        config = loaded()

        assert config.agent.advertise == "127.0.0.1:7460"
        assert config.agent.socket == Path("/run/damselfly/agent.sock")
        assert config.store.path == Path("/models")
        assert config.swarm.peers == PeerList()
        assert config.agent.admin is None

    @pytest.mark.parametrize("key", NEEDED)
    def test_what_is_needed_is_asked_for_in_three_ways(self, key: str) -> None:
        given = {other: text for other, text in NEEDED.items() if other != key}

        with pytest.raises(ConfigError) as caught:
            load_config(given, {}, uid=0)

        for way in (key, SETTINGS[key].setting.flag, f"${SETTINGS[key].variable}", "--config"):
            assert way in str(caught.value)

    def test_a_flag_beats_the_environment_which_beats_the_file(self, tmp_path: Path) -> None:
        file = toml(tmp_path, '[swarm]\nzone = "file"\n[log]\nlevel = "error"\nformat = "json"\n')
        environ = {"DAMSELFLY_SWARM_ZONE": "environment", "DAMSELFLY_LOG_LEVEL": "warning"}

        config = loaded({"swarm.zone": "flag"}, environ, file)

        assert (config.swarm.zone, config.log.level, config.log.format) == (
            "flag",
            "warning",
            "json",
        )
        assert config.sources["swarm.zone"] == "flag --zone"
        assert config.sources["log.level"] == "variable DAMSELFLY_LOG_LEVEL"
        assert config.sources["log.format"] == f"file {file}"

    def test_the_environment_may_name_the_file(self, tmp_path: Path) -> None:
        file = toml(tmp_path, '[swarm]\nzone = "a"\n')

        assert loaded(environ={"DAMSELFLY_CONFIG": str(file)}).swarm.zone == "a"

    def test_one_variable_names_the_socket_for_agent_and_client(self) -> None:
        assert loaded(environ={"DAMSELFLY_SOCKET": "/x/s"}).agent.socket == Path("/x/s")

    def test_an_empty_variable_says_nothing(self) -> None:
        assert loaded(environ={"DAMSELFLY_SWARM_ZONE": ""}).swarm.zone == ""

    def test_without_a_private_place_a_socket_must_be_named(self) -> None:
        with pytest.raises(ConfigError, match="--socket PATH"):
            load_config(NEEDED, {}, uid=1000)
        config = load_config(NEEDED, {"XDG_RUNTIME_DIR": "/run/user/1000"}, uid=1000)

        assert config.agent.socket == Path("/run/user/1000/damselfly/agent.sock")

    def test_everything_in_effect_can_be_shown_with_who_said_it(self) -> None:
        rows = {key: (value, source) for key, value, source in loaded().effective()}

        assert set(rows) == set(SETTINGS)
        assert rows["agent.listen"] == ("127.0.0.1:7460", "flag --listen")
        assert rows["agent.advertise"] == ("127.0.0.1:7460", "as agent.listen")
        assert rows["agent.socket_mode"] == ("0660", "default")
        assert rows["agent.admin"] == ("off", "default")
        assert rows["store.keep_free_bytes"] == ("1GiB", "default")
        assert rows["store.capacity_bytes"] == ("automatic", "default")

    def test_no_two_settings_share_a_flag_or_a_variable(self) -> None:
        assert len({declared.setting.flag for declared in SETTINGS.values()}) == len(SETTINGS)
        assert len({declared.variable for declared in SETTINGS.values()}) == len(SETTINGS)
        assert all(declared.setting.reason for declared in SETTINGS.values())

    def test_every_default_is_one_that_could_be_written(self) -> None:
        for declared in SETTINGS.values():
            if declared.default and not declared.is_required and not declared.setting.is_derived:
                shown = declared.show(declared.default)
                if shown != "none":
                    assert declared.setting.parse(shown) == declared.default


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("[stroe]\npath = '/x'", "'store'"),
            ("[store]\npaht = '/x'", "'store.path'"),
            ("listen = '0.0.0.0:1'", "'listen'"),
            ("store = 7", "[store]"),
            ("[store]\ncapacity_bytes = '5 apples'", "store.capacity_bytes"),
            ("[store]\ncapacity_bytes = -1", "store.capacity_bytes"),
            ("[agent]\nsocket = 7", "agent.socket"),
            ("[agent]\nsocket_mode = 660", "agent.socket_mode"),
            ("[swarm]\npeers = [7]", "swarm.peers"),
            ("[swarm]\npeers = 'nowhere'", "swarm.peers"),
            ("[log]\nlevel = 'loud'", "debug, info, warning, error"),
            ("[origin]\nconnections = 0", "origin.connections"),
            ("[origin]\nconnections = true", "origin.connections"),
            ("[store", "parsing"),
        ],
    )
    def test_what_is_wrong_in_a_file_is_named_with_the_file(
        self, tmp_path: Path, text: str, named: str
    ) -> None:
        file = toml(tmp_path, text)

        told = refused(file=file)

        assert named in told
        assert str(file) in told

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        assert str(tmp_path / "none.toml") in refused(file=tmp_path / "none.toml")
        (tmp_path / "latin.toml").write_bytes(b"[log]\nlevel = '\xe9'")
        assert "latin.toml" in refused(file=tmp_path / "latin.toml")
        (tmp_path / "huge.toml").write_bytes(b"#" * (2 << 20))
        assert "longer than" in refused(file=tmp_path / "huge.toml")

    def test_a_misspelt_variable_is_named_with_its_neighbour(self) -> None:
        told = refused(environ={"DAMSELFLY_STORE_PAHT": "/x"})

        assert "DAMSELFLY_STORE_PAHT" in told
        assert "did you mean 'DAMSELFLY_STORE_PATH'?" in told

    def test_what_kubernetes_sets_for_services_is_not_ours(self) -> None:
        links = {
            "DAMSELFLY_AGENT_SERVICE_HOST": "10.0.0.1",
            "DAMSELFLY_AGENT_SERVICE_PORT": "7460",
            "DAMSELFLY_AGENT_SERVICE_PORT_PEERS": "7460",
            "DAMSELFLY_AGENT_PORT": "tcp://10.0.0.1:7460",
            "DAMSELFLY_AGENT_PORT_7460_TCP": "tcp://10.0.0.1:7460",
            "DAMSELFLY_AGENT_PORT_7460_TCP_ADDR": "10.0.0.1",
            "DAMSELFLY_SERVICE_HOST": "10.0.0.1",
        }

        assert loaded(environ=links) == loaded()

    @pytest.mark.parametrize(
        ("flags", "named"),
        [
            ({"store.low": "0.9", "store.high": "0.8"}, "store.low"),
            ({"agent.admin": "127.0.0.1:7460"}, "agent.admin"),
            ({"swarm.buffer_bytes": "1MiB"}, "swarm.buffer_bytes"),
            ({"agent.advertise": "0.0.0.0:7460"}, "wildcard"),
            ({"agent.advertise": "[::]:7460"}, "wildcard"),
            ({"agent.listen": "7460"}, "agent.listen"),
            ({"agent.listen": "host:port"}, "agent.listen"),
            ({"agent.socket": "/" + "x" * 200}, "unix socket"),
            ({"agent.socket_mode": "0666"}, "command the agent"),
            ({"swarm.zone": "a b"}, "swarm.zone"),
            ({"swarm.peers": "dns:name"}, "swarm.peers"),
            ({"agent.drain_s": "soon"}, "agent.drain_s"),
        ],
    )
    def test_what_makes_no_sense_is_refused_by_name(
        self, flags: dict[str, str], named: str
    ) -> None:
        assert named in refused(flags)


class TestPeers:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("10.0.0.1:7460", PeerList(frozenset({"10.0.0.1:7460"}))),
            ("a:1, b:2,", PeerList(frozenset({"a:1", "b:2"}))),
            ("[fd00::1]:1", PeerList(frozenset({"[fd00::1]:1"}))),
            ("", PeerList()),
            ("file:/etc/peers", PeerFile(Path("/etc/peers"))),
            ("dns:agents.models.svc:7460", PeerName("agents.models.svc", 7460)),
            ("k8s:models/agents", PeerService(ServiceName("models", "agents"))),
        ],
    )
    def test_peers_are_a_list_a_file_or_a_name(self, text: str, value: object) -> None:
        assert loaded({"swarm.peers": text}).swarm.peers == value

    @pytest.mark.parametrize(
        "text", ["k8s:", "k8s:agents", "k8s:a/b/c", "k8s:A/b", "k8s:a/-b", "k8s:a/b:7460", "k8s:/"]
    )
    def test_a_service_has_a_namespace_and_a_name(self, text: str) -> None:
        assert "swarm.peers" in refused({"swarm.peers": text})

    def test_what_names_a_service_is_shown_as_it_was_given(self) -> None:
        rows = loaded({"swarm.peers": "k8s:models/agents", "swarm.zone": "k8s:node-7"}).effective()

        shown = {key: value for key, value, _ in rows}
        assert shown["swarm.peers"] == "k8s:models/agents"
        assert shown["swarm.zone"] == "k8s:node-7"

    def test_a_file_may_list_them_in_toml(self, tmp_path: Path) -> None:
        file = toml(tmp_path, '[swarm]\npeers = ["a:1", "b:2"]')

        assert loaded(file=file).swarm.peers == PeerList(frozenset({"a:1", "b:2"}))

    def test_a_relative_path_is_of_where_the_agent_was_started(self) -> None:
        config = loaded({"store.path": "models", "swarm.peers": "file:peers"})

        assert config.store.path == Path.cwd() / "models"
        assert config.swarm.peers == PeerFile(Path.cwd() / "peers")


class TestZone:
    @pytest.mark.parametrize("node", ["node-7", "ip-10-0-0-1.eu-west-1.compute.internal", "7"])
    def test_a_zone_may_be_that_of_a_node(self, node: str) -> None:
        config = loaded(environ={"DAMSELFLY_SWARM_ZONE": f"k8s:{node}"})

        assert config.swarm.zone == ZoneOfNode(node)

    @pytest.mark.parametrize("node", ["", "$(NODE_NAME)", "a b", "Node", ".", "a..b", "a" * 254])
    def test_a_node_that_cannot_be_is_refused(self, node: str) -> None:
        assert "swarm.zone" in refused({"swarm.zone": f"k8s:{node}"})


class TestAdvertise:
    def test_what_is_said_is_told(self) -> None:
        config = loaded({"agent.listen": "0.0.0.0:0", "agent.advertise": "node7:0"})

        assert config.advertised(4711) == "node7:4711"

    def test_a_port_that_is_said_stays(self) -> None:
        assert loaded({"agent.advertise": "node7:80"}).advertised(4711) == "node7:80"

    def test_an_ipv6_address_keeps_its_brackets(self) -> None:
        assert loaded({"agent.listen": "[::1]:0"}).advertised(4711) == "[::1]:4711"

    def test_on_a_wildcard_an_address_of_this_machine_is_found_or_asked_for(self) -> None:
        try:
            config = loaded({"agent.listen": "0.0.0.0:7460"})
        except ConfigError as exc:
            assert "--advertise HOST:PORT" in str(exc)  # noqa: PT017 - no network is a fair answer
            return
        host, _, port = config.agent.advertise.rpartition(":")
        assert port == "7460"
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host.strip("[]"), 0))  # only one's own addresses can be bound

    def test_a_machine_without_a_route_must_be_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_name(*_: object, **__: object) -> None:
            raise OSError

        monkeypatch.setattr(socket, "getaddrinfo", no_name)

        told = refused({"agent.listen": "0.0.0.0:7460", "swarm.peers": "10.0.0.1:1"})

        assert "--advertise HOST:PORT" in told


class TestQuantities:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("0", 0),
            ("4096", 4096),
            ("500GiB", 500 * GIB),
            ("500 GiB", 500 * GIB),
            ("500gib", 500 * GIB),
            ("1.5KiB", 1536),
            ("2TB", 2 * 10**12),
            ("8PiB", 8 << 50),
            (7, 7),
        ],
    )
    def test_sizes(self, text: object, value: int) -> None:
        assert parse_bytes(text) == value

    @pytest.mark.parametrize(
        "text", ["", "5G", "-1", "GiB", "1e9", "5 apples", -1, True, 1.5, None]
    )
    def test_what_is_no_size(self, text: object) -> None:
        with pytest.raises(ValueError, match="not a size"):
            parse_bytes(text)

    @given(st.integers(0, 1 << 60))
    def test_a_size_that_is_shown_is_read_back(self, count: int) -> None:
        assert parse_bytes(show_bytes(count)) == count

    @pytest.mark.parametrize(
        ("text", "value"),
        [("20s", 20), ("500ms", 0.5), ("1.5h", 5400), ("5min", 300), ("7", 7), (0.25, 0.25)],
    )
    def test_durations(self, text: object, value: float) -> None:
        assert parse_seconds(text) == value

    @pytest.mark.parametrize("text", ["", "soon", "-1s", -1, float("inf"), float("nan"), True])
    def test_what_is_no_duration(self, text: object) -> None:
        with pytest.raises(ValueError, match="not a duration"):
            parse_seconds(text)

    @pytest.mark.parametrize(("text", "value"), [("95%", 0.95), ("0.5", 0.5), (1, 1), (0.1, 0.1)])
    def test_shares(self, text: object, value: float) -> None:
        assert parse_share(text) == pytest.approx(value)

    @pytest.mark.parametrize("text", [0, 1.01, "101%", "half", "", True, float("nan")])
    def test_what_is_no_share(self, text: object) -> None:
        with pytest.raises(ValueError, match="not a share"):
            parse_share(text)

    @pytest.mark.parametrize("text", ["0", "-1", "x", 0, 1.0, True, "9" * 20])
    def test_what_is_no_count(self, text: object) -> None:
        with pytest.raises(ValueError, match="whole number"):
            parse_count(text)

    @pytest.mark.parametrize("text", [660, "0o660", "rw", "0999", ""])
    def test_what_is_no_mode(self, text: object) -> None:
        with pytest.raises(ValueError, match="not a mode"):
            parse_mode(text)

    @given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)))
    def test_nothing_but_values_and_value_errors_comes_of_anything(self, value: object) -> None:
        for declared in SETTINGS.values():
            with suppress(ValueError, ConfigError):
                declared.setting.parse(value)
