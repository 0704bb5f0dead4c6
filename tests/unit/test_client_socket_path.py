"""Where the agent's socket is when nobody says."""

from pathlib import Path

from damselfly.client.socket_path import SYSTEM_SOCKET, find_socket, own_socket


def test_the_environment_is_believed() -> None:
    said = {"DAMSELFLY_SOCKET": "/x/s", "XDG_RUNTIME_DIR": "/run/user/7"}

    assert own_socket(said, uid=0) == find_socket(said, uid=0) == "/x/s"
    assert own_socket(said, uid=7) == find_socket(said, uid=7) == "/x/s"


def test_root_has_the_systems_socket() -> None:
    session = {"XDG_RUNTIME_DIR": "/run/user/0"}

    assert own_socket(session, uid=0) == find_socket(session, uid=0) == SYSTEM_SOCKET


def test_others_have_one_in_their_session() -> None:
    session = {"XDG_RUNTIME_DIR": "/run/user/7"}

    assert own_socket(session, uid=7) == "/run/user/7/damselfly/agent.sock"


def test_without_a_session_there_is_no_private_place() -> None:
    assert own_socket({}, uid=7) is None


def test_a_client_finds_its_own_agent_and_else_the_systems(tmp_path: Path) -> None:
    session = {"XDG_RUNTIME_DIR": str(tmp_path)}

    assert find_socket(session, uid=7) == SYSTEM_SOCKET
    assert find_socket({}, uid=7) == SYSTEM_SOCKET
    own = tmp_path / "damselfly" / "agent.sock"
    own.parent.mkdir()
    own.touch()

    assert find_socket(session, uid=7) == str(own)
