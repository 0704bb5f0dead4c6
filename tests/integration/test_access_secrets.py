"""Secrets of every kind, planted everywhere: each opens what it is for, and is seen nowhere."""

import asyncio
import base64
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from bench.agents import Agent, Fleet, free_addresses
from damselfly.client.answers import Credentials
from damselfly.errors import DamselflyError, OriginDeniedError, explain
from tests.integration.origin_servers import served, weights
from tests.integration.volume_origin import files_below, opened, ready

TOKEN = "planted-token-1aa7"
TOKEN_OF_FILE = "planted-tokenfile-2bb8"
TOKEN_OF_VARIABLE = "planted-variable-3cc9"
PASSWORD = "planted-password-4dd0"
SIGNATURE = "planted-signature-5ee1"
REDIRECTED = "planted-redirect-6ff2"
COOKIE = "planted-cookie-7aa3"
PAGE = "planted-page-8bb4"
OF_POD = "planted-pod-9cc5"
OF_CALLER = "planted-caller-0dd6"
WRONG = "planted-wrong-1ee7"
PAIR = base64.b64encode(f"owner:{PASSWORD}".encode()).decode()
NEEDLES = tuple(word.encode() for word in ("planted-", PAIR))

FILES = {"config.json": b"{}", "model.safetensors": weights(7, 2 << 20, 100)}
SHOWS = {
    "token": f"Bearer {TOKEN}",
    "file": f"Bearer {TOKEN_OF_FILE}",
    "variable": f"Bearer {TOKEN_OF_VARIABLE}",
    "password": f"Basic {PAIR}",
    "pod": f"Bearer {OF_POD}",
    "caller": f"Bearer {OF_CALLER}",
}


class Places:
    """A server with one private model for each kind of secret; error pages tell secrets too."""

    def __init__(self) -> None:
        self.url = ""
        self.shown: dict[str, set[str]] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        kind, path = request.match_info["kind"], request.match_info["path"]
        self.shown.setdefault(kind, set()).add(request.headers.get("Authorization", ""))
        spoken = {"Set-Cookie": f"session={COOKIE}", "WWW-Authenticate": f'Bearer realm="{PAGE}"'}
        if kind in {"signed", "redirect"}:
            is_open = request.query.get("signature") == SIGNATURE
        elif kind == "elsewhere":
            is_open = request.query.get("signature") == REDIRECTED
        else:
            is_open = request.headers.get("Authorization") == SHOWS.get(kind, PAGE)
        if not is_open:
            body = f"<html>{PAGE} {request.headers.get('Authorization')}"
            return web.Response(status=403, text=body, headers=spoken)
        if kind == "redirect":
            place = f"{self.url}/elsewhere/{path}?signature={REDIRECTED}"
            return web.Response(status=302, headers={**spoken, "Location": place})
        if not path:
            links = "".join(f'<a href="{name}">{name}</a>' for name in FILES)
            text = f"<title>Index of</title>{links}"
            return web.Response(text=text, content_type="text/html", headers=spoken)
        if path not in FILES:
            return web.Response(status=404, text=PAGE, headers=spoken)
        data = FILES[path]
        part = request.http_range
        if part.start is None:
            return web.Response(body=data, headers={**spoken, "ETag": '"1"'})
        stop = min(len(data), part.stop or len(data))
        place = f"bytes {part.start}-{stop - 1}/{len(data)}"
        headers = {**spoken, "ETag": '"1"', "Content-Range": place}
        return web.Response(status=206, body=data[part.start : stop], headers=headers)


@pytest.fixture
async def places() -> AsyncIterator[Places]:
    places = Places()
    app = web.Application()
    app.router.add_get("/{kind}/{path:.*}", places.answer)
    async with served(app) as places.url:
        yield places


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


def planted(folder: Path, url: str) -> Path:
    """A file of credentials, and what it names, outside of what is searched."""
    folder.mkdir()
    file = folder / "credentials.toml"
    file.write_text(
        f'["{url}/token"]\ntoken = "{TOKEN}"\n'
        f'["{url}/file"]\ntoken_file = "token"\n'
        f'["{url}/variable"]\ntoken_env = "PLANTED_TOKEN"\n'
        f'["{url}/password/"]\nusername = "owner"\npassword = "{PASSWORD}"\n'
    )
    (folder / "token").write_text(TOKEN_OF_FILE)
    (folder / "caller").write_text(OF_CALLER)
    (folder / "wrong").write_text(WRONG)
    for one in folder.iterdir():
        one.chmod(0o600)
    return file


def asked(agent: Agent, *words: str) -> str:
    """What a command says, and what anybody may read of it while it runs."""
    command = [sys.executable, "-m", "damselfly", *words, "--socket", agent.client.socket_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{done.returncode}\n{done.stdout}\n{done.stderr}"


async def test_secrets_open_what_they_are_for_and_are_seen_nowhere(
    fleet: Fleet, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", TOKEN_OF_VARIABLE)
    hidden = tmp_path / "hidden"
    file = planted(hidden, places.url)
    addresses = free_addresses(3)
    debug = ("--log-level", "debug", "--log-format", "json", "--credentials", str(file))
    one = await ready(fleet, "n0", addresses[0], addresses[:2], *debug, "--admin", addresses[2])
    two = await ready(fleet, "n1", addresses[1], addresses[:2], *debug)
    fleet.wait_until_met()
    told: list[str] = []
    signed = [f"{places.url}/{kind}/?signature={SIGNATURE}" for kind in ("signed", "redirect")]
    private = [f"{places.url}/{kind}/" for kind in ("token", "file", "variable", "password")]

    for ref in private:
        for agent in (one, two):
            said = await asyncio.to_thread(asked, agent, "pull", ref, "--json")
            assert said.startswith("0\n"), said
            told.append(said)
    for ref in signed:
        # Whoever types a signature has it on the command line; what we say of it is looked at.
        outcome = await asyncio.to_thread(one.pull, ref)
        assert files_below(outcome.path) == FILES
        told.append(repr(outcome))
    caller = ("pull", f"{places.url}/caller/", "--token-file")
    told.append(await asyncio.to_thread(asked, one, *caller, str(hidden / "caller")))
    assert told[-1].startswith("0\n"), told[-1]
    told.append(await asyncio.to_thread(asked, one, *caller, str(hidden / "wrong"), "--fresh"))
    assert told[-1].startswith("61\n"), told[-1]

    pod = await opened(two, f"{places.url}/pod/", "v0", Credentials(token=OF_POD))
    told.append(repr(pod))
    for number, ref in enumerate([*private, f"{places.url}/pod/"]):
        # What the node may read for itself, and has here, is nothing that a pod may see.
        for who in (None, Credentials(token=WRONG)):
            with pytest.raises(OriginDeniedError) as denied:
                await opened(one, ref, f"w{number}", who)
            told.append(explain(denied.value))
    assert places.shown["pod"] == {SHOWS["pod"], f"Bearer {WRONG}", ""}

    file.write_text(f'broken = "{TOKEN}')
    told.append(await asyncio.to_thread(asked, one, "doctor", "--json"))
    assert '"credentials"' in told[-1]
    told.append(await asyncio.to_thread(asked, one, "ls", "--json"))
    told.append(await asyncio.to_thread(asked, one, "status", "--json"))
    with urllib.request.urlopen(f"http://{addresses[2]}/metrics") as page:
        told.append(page.read().decode())
    for agent in (one, two):
        process = Path(f"/proc/{agent.process.pid}/cmdline")
        told.append(process.read_text())
    with pytest.raises(DamselflyError) as unknown:
        await opened(one, f"{places.url}/nowhere/?signature={SIGNATURE}", "x", None)
    told.append(explain(unknown.value))

    assert [text for text in told if any(word.decode() in text for word in NEEDLES)] == []
    kept = [path for path in fleet.folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("catalog") for path in kept)
    assert [path for path in kept if any(word in path.read_bytes() for word in NEEDLES)] == []
    assert "rights.kept" in (fleet.folder / "n0.log").read_text()


@pytest.mark.parametrize(
    "text",
    [
        f'["https://owner:{PASSWORD}@host/"]\ntoken = "x"',
        f'["https://host/?signature={SIGNATURE}"]\ntoken = "x"',
        f'["https://host/"]\ntoken = "{TOKEN} with spaces"',
        f"{TOKEN} = ",
    ],
)
def test_an_agent_does_not_start_with_a_file_that_it_cannot_use(tmp_path: Path, text: str) -> None:
    file = tmp_path / "credentials"
    file.touch(0o600)
    file.write_text(text)
    command = [sys.executable, "-m", "damselfly", "agent", "--listen", "127.0.0.1:0"]
    command += ["--store", str(tmp_path / "store"), "--socket", str(tmp_path / "s")]

    done = subprocess.run(
        [*command, "--credentials", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 3, done.stderr
    assert str(file) in done.stderr
    assert "planted-" not in done.stdout + done.stderr
