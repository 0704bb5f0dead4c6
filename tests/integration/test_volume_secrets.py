"""A planted secret is found nowhere: logs, errors, metrics, the disk, the words between agents."""

import base64
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.agents import Fleet, free_addresses
from damselfly.client.answers import Credentials, PullRequest, VolumeRequest
from damselfly.errors import DamselflyError, OriginDeniedError, OriginUnavailableError, explain
from tests.integration.volume_origin import (
    OWNER,
    SECRET,
    STRANGER,
    GuardedOrigin,
    guarded_origin,
    opened,
    ready,
)

ETH_P_ALL = 3
NEEDLES = (b"s3cret", base64.b64encode(b"owner:s3cret"))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
async def origin(tmp_path: Path) -> AsyncIterator[GuardedOrigin]:
    async with guarded_origin(tmp_path / "model") as origin:
        yield origin


def hiding_places(root: Path) -> list[Path]:
    """Files below `root` that have a secret in them."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return [path for path in files if any(word in path.read_bytes() for word in NEEDLES)]


@contextmanager
def overheard(ports: set[int]) -> Iterator[bytearray]:
    """What is said on the loopback device from or to these TCP ports."""
    heard = bytearray()
    ended = threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as ear:
        ear.bind(("lo", 0))
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 20)
        ear.settimeout(0.05)

        def listen() -> None:
            while True:
                try:
                    frame = ear.recv(1 << 17)
                except TimeoutError:
                    if ended.is_set():
                        return
                    continue
                head = 14 + 4 * (frame[14] & 15)
                if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP:
                    said = {int.from_bytes(frame[head + i : head + i + 2], "big") for i in (0, 2)}
                    if said & ports:
                        heard.extend(frame[head:])

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield heard
        finally:
            ended.set()
            thread.join()


async def test_a_secret_is_told_to_the_origin_and_to_nobody_else(
    fleet: Fleet, origin: GuardedOrigin, tmp_path: Path
) -> None:
    addresses = free_addresses(4)
    debug = ("--log-level", "debug", "--log-format", "json")
    one = await ready(fleet, "n0", addresses[0], addresses[:2], *debug, "--admin", addresses[2])
    two = await ready(fleet, "n1", addresses[1], addresses[:2], *debug, "--admin", addresses[3])
    fleet.wait_until_met()
    told: list[str] = []
    password = Credentials(username="owner", password=f"{SECRET}-pass")

    told += [repr(await opened(agent, origin.ref, "v0", OWNER)) for agent in (one, two)]
    for number, who in enumerate((STRANGER, password, Credentials(token=f"{SECRET} two words"))):
        with pytest.raises(DamselflyError) as caught:
            await opened(one, origin.ref, f"w{number}", who)
        told.append(explain(caught.value))
    token = tmp_path / "token"
    token.write_text(SECRET)
    for verb in (
        ("pull", origin.ref, "--token-file", str(token)),
        ("status", "--json"),
        ("ls", "--json"),
        ("doctor", "--json"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "damselfly", *verb, "--socket", one.client.socket_path],
            capture_output=True,
            text=True,
            check=True,
        )
        told.append(done.stdout + done.stderr)
    for admin in addresses[2:]:
        with urllib.request.urlopen(f"http://{admin}/metrics") as page:
            told.append(page.read().decode())
    await origin.down()
    with pytest.raises(OriginUnavailableError) as unavailable:
        await opened(two, origin.ref, "v9", STRANGER)
    told.append(explain(unavailable.value))

    assert "s3cret" not in "".join(told)
    assert "access.proved" in (fleet.folder / "n0.log").read_text()
    assert hiding_places(fleet.folder) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="listening to a network device needs root")
async def test_a_secret_never_crosses_the_wire_between_agents(
    fleet: Fleet, origin: GuardedOrigin
) -> None:
    addresses = free_addresses(2)
    ports = {int(address.rpartition(":")[2]) for address in addresses}

    with overheard(ports) as heard:
        one = await ready(fleet, "n0", addresses[0], addresses)
        two = await ready(fleet, "n1", addresses[1], addresses)
        fleet.wait_until_met()
        await opened(one, origin.ref, "v0", OWNER)
        await opened(two, origin.ref, "v0", OWNER)
        with pytest.raises(OriginDeniedError):
            await opened(two, origin.ref, "v1", STRANGER)

    assert len(heard) > 5 << 20, "the model went from one to the other"
    assert b"s3cret" not in heard


def test_no_record_shows_its_credentials() -> None:
    for record in (
        OWNER,
        PullRequest(ref="file:///m/", credentials=OWNER),
        VolumeRequest(ref="file:///m/", lease="v0", credentials=OWNER),
    ):
        assert SECRET not in repr(record)
        assert SECRET not in str(record)
