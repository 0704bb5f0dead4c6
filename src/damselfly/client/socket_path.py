"""Where the agent's socket is when nobody says."""

import os
from collections.abc import Mapping

SOCKET_VARIABLE = "DAMSELFLY_SOCKET"
SYSTEM_SOCKET = "/run/damselfly/agent.sock"
PATH_BYTES_MAX = 107  # sockaddr_un.sun_path, less its closing zero


def own_socket(environ: Mapping[str, str], uid: int) -> str | None:
    """Where an agent of this user listens: the system's place for root, else the session's.

    None without either: a socket in a directory that others can write is no access control.
    """
    if said := environ.get(SOCKET_VARIABLE):
        return said
    if uid == 0:
        return SYSTEM_SOCKET
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return f"{runtime}/damselfly/agent.sock"
    return None


def find_socket(environ: Mapping[str, str], uid: int) -> str:
    """Where a client looks: $DAMSELFLY_SOCKET, this user's own agent, then the system's."""
    found = own_socket(environ, uid)
    if found is None or (SOCKET_VARIABLE not in environ and not os.path.lexists(found)):
        return SYSTEM_SOCKET
    return found
