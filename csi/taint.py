"""Taking the startup taint from our node, once the kubelet has registered us and not before.

A node that joins carries the taint, so that no pod with our volumes is sent there before we can
mount them. Taken away before the kubelet knows us, it would only have moved the race.

Spoken in plain HTTPS: it is one GET and one PATCH in the life of a node, and this is the privileged
process, which does not want a client for all of Kubernetes (and 60 MB of it) in its memory.
"""

import http.client
import json
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from damselfly.errors import ConfigError, DeniedError, RemoteProtocolError, UnavailableError

logger = logging.getLogger(__name__)

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE_S = 20.0
ANSWER_BYTES_MAX = 8 * 1024 * 1024
"""A node with all its images and addresses is some 100 KB."""
RETRY_S_MAX = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where the API server is, and who we are to it."""

    host: str
    port: int
    account: Path = ACCOUNT

    @classmethod
    def of(cls, environ: Mapping[str, str], account: Path = ACCOUNT) -> "Cluster":
        """The cluster that this pod runs in.

        Raises:
            ConfigError: It runs in none.
        """
        host = environ.get("KUBERNETES_SERVICE_HOST")
        port = environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not port.isdecimal():
            raise ConfigError("--remove-taint: not in a cluster (KUBERNETES_SERVICE_HOST is unset)")
        return cls(host=host, port=int(port), account=account)


def patch_of(node: object, key: str) -> list[dict[str, object]] | None:
    """The JSON patch that takes every taint of this key away; None: there is none.

    It tests that the taints are still those that were read: others add and remove theirs.

    Raises:
        RemoteProtocolError: This is no node.
    """
    if not isinstance(node, dict):
        raise RemoteProtocolError("the API server's answer is not a node")
    spec = cast("dict[str, object]", node).get("spec")
    taints = cast("dict[str, object]", spec).get("taints") if isinstance(spec, dict) else None
    if not isinstance(taints, list):
        return None
    given = cast("list[object]", taints)
    kept = [taint for taint in given if _key_of(taint) != key]
    if len(kept) == len(given):
        return None
    return [
        {"op": "test", "path": "/spec/taints", "value": given},
        {"op": "replace", "path": "/spec/taints", "value": kept},
    ]


def _key_of(taint: object) -> object:
    return cast("dict[str, object]", taint).get("key") if isinstance(taint, dict) else None


def remove_taint(cluster: Cluster, node: str, key: str) -> bool:
    """Take a taint from a node, once; False: it has none. Blocks.

    Raises:
        UnavailableError: The API server does not answer, or somebody else changed the taints.
        DeniedError: We may not.
        RemoteProtocolError: What answers is no API server.
    """
    path = f"/api/v1/nodes/{node}"
    patch = patch_of(_ask(cluster, "GET", path), key)
    if patch is None:
        return False
    _ask(cluster, "PATCH", path, patch)
    return True


def keep_removing(cluster: Cluster, node: str, key: str) -> None:
    """Try until the taint is gone. Blocks, for as long as that takes."""
    pause_s = 1.0
    while True:
        try:
            was_there = remove_taint(cluster, node, key)
        except (UnavailableError, DeniedError, RemoteProtocolError) as exc:
            logger.warning("taint.kept", extra={"node": node, "taint": key, "error": exc})
        else:
            event = "taint.removed" if was_there else "taint.absent"
            logger.info(event, extra={"node": node, "taint": key})
            return
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, RETRY_S_MAX)


def _ask(cluster: Cluster, method: str, path: str, patch: object = None) -> object:
    what = f"asking the API server to {method} {path}"
    try:
        # Read anew each time: the kubelet renews the token, and the certificate may change.
        token = (cluster.account / "token").read_text().strip()
        context = ssl.create_default_context(cafile=str(cluster.account / "ca.crt"))
        connection = http.client.HTTPSConnection(
            cluster.host, cluster.port, timeout=PATIENCE_S, context=context
        )
        try:
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
            body = None
            if patch is not None:
                headers["Content-Type"] = "application/json-patch+json"
                body = json.dumps(patch).encode()
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read(ANSWER_BYTES_MAX)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as exc:
        raise UnavailableError(what) from exc
    if answer.status in {401, 403}:
        raise DeniedError(f"{what}: the service account needs get and patch on nodes")
    if answer.status != 200:
        raise UnavailableError(f"{what}: it answers {answer.status} {answer.reason}")
    try:
        return json.loads(text)
    except ValueError as exc:
        raise RemoteProtocolError(what) from exc
