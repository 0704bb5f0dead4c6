"""Targets of what hubs, registries and signers say: each is fed to whoever asks them.

The bytes are a head and a body, with an empty line between them: one header on each line.
"""

import asyncio
import json
import math
from base64 import b64encode
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar, cast

from yarl import URL

from damselfly.errors import (
    ManifestError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    RemoteProtocolError,
    UnsupportedFormatError,
    UsageError,
)
from damselfly.model.hub_ref import HubRef, is_commit
from damselfly.model.oci_name import OCIName
from damselfly.model.paths import check_tree
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS
from damselfly.origin.answers import decoded_here
from damselfly.origin.bearer import PULL, Asking, Tokens
from damselfly.origin.challenge import parse_challenges
from damselfly.origin.gate import rest_told_by, told_rest_s
from damselfly.origin.hub_api import FILE_BYTES_MAX, Entry, HubAPI
from damselfly.origin.hub_environment import HubEnvironment
from damselfly.origin.oci_manifest import OCIIndex, parse_oci_manifest
from damselfly.origin.port import OriginLimits
from damselfly.origin.renewed import LASTING_S_MAX, expiry_of
from damselfly.origin.signature_process import answered
from damselfly.origin.web import Answer, Web, redirected
from tests.fuzz.reading import tried

_T = TypeVar("_T")

COMMIT = "0123456789" * 4
NOW_S = 1_800_000_000.0
KEY = b"""-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEHP1svnIOr7WakCIMgUkJfFQ75m3L
hBTFSKh2s3L5PaGzUg5mpo6Klz6r51rOhJuMJHqDll7g9kESSJa9OuksjQ==
-----END PUBLIC KEY-----
"""
"""Whoever made the signature in the corpus threw the other half away."""
_HUB_ERRORS = (
    ManifestError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    RemoteProtocolError,
)


class _Said:
    """A web where everybody answers the same."""

    def __init__(self, data: bytes, status: int = 200) -> None:
        head, _, body = data.partition(b"\n\n")
        lines = (line.partition(": ") for line in head.decode("latin-1").split("\n"))
        self.headers = {name: value for name, _, value in lines}
        self.body = body
        self._status = status

    async def send(self, _method: str, url: str, **_asked: object) -> Answer:
        """Answer."""
        return Answer(self._status, self.headers, self.body, url)


def _asked(asking: Coroutine[Any, Any, _T]) -> _T | None:
    return tried(lambda: asyncio.run(asking), *_HUB_ERRORS)


def hub(data: bytes) -> None:
    """What a hub says of a commit, of its files, and of where one of them is."""
    place = HubRef("models", "org/name", "main")
    for status in (200, 302, 403):
        web = cast("Web", _Said(data, status))
        api = HubAPI(web, OriginLimits(), HubEnvironment({"HF_TOKEN_PATH": "/dev/null"}))
        commit = _asked(api.commit(place, ANONYMOUS))
        assert commit is None or is_commit(commit)
        entries = _asked(api.tree(place, COMMIT, ANONYMOUS, inside="")) or []
        assert sum(entry.size for entry in entries) <= FILE_BYTES_MAX
        assert len({entry.path for entry in entries}) == len(entries)
        wanted = Entry("a.bin", 7, COMMIT, "0" * 64)
        found = _asked(api.address(place, COMMIT, wanted, ANONYMOUS))
        assert found is None or URL(found.url, encoded=True).host


def hub_ref(data: bytes) -> None:
    """A place on the hub is written as it is read, at a commit above all."""
    ref = tried(partial(Ref.parse, data.decode(errors="replace")), UsageError)
    place = None if ref is None else tried(partial(HubRef.of, ref), UsageError)
    if place is None:
        return
    for is_directory in (True, False):
        at = place.ref_at(COMMIT, is_directory=is_directory or not place.inside)
        again = HubRef.of(Ref.parse(at))
        assert str(Ref.parse(at)) == at
        assert (again.kind, again.repository) == (place.kind, place.repository)
        assert (again.revision, again.inside) == (COMMIT, place.inside)


def oci(data: bytes) -> None:
    """A manifest of a registry is files, an index, or refused."""
    found = tried(
        partial(parse_oci_manifest, data, "a place"), ManifestError, UnsupportedFormatError
    )
    if isinstance(found, OCIIndex):
        tried(partial(found.only, "a place"), UsageError)
    elif found is not None:
        check_tree(layer.path for layer in found.layers)
        assert all(layer.blob.size >= 0 for layer in found.layers)
        assert all(len(layer.blob.digest) == 71 for layer in found.layers)


def challenge(data: bytes) -> None:
    """What a registry wants to be shown, and the token that a service gives for it."""
    header, _, token = data.partition(b"\n\n")
    text = header.decode("latin-1")
    for each in parse_challenges(text):
        assert each.scheme == each.scheme.lower() != ""
    name = OCIName.of(Ref.parse("oci://registry.test/org/name:v1"))
    asking = Asking("https://registry.test", name, PULL, ANONYMOUS)
    tokens = Tokens(cast("Web", _Said(b"\n\n" + token)))
    found = _asked(tokens.renewed(asking, ANONYMOUS, text))
    if found is not None:
        shown = found.headers("GET", "https://registry.test/", {})
        assert all(value.isprintable() and value.isascii() for value in shown.values())


def address(data: bytes) -> None:
    """Where one is sent, until when it counts, and when to come back."""
    text = data.decode("latin-1")
    moved = partial(redirected, URL("https://h/m/x"), text, "fuzzing")
    target = tried(moved, RemoteProtocolError, OriginDeniedError)
    if target is not None:
        assert target.scheme == "https"
        assert target.host
        assert expiry_of(str(target), NOW_S) <= NOW_S + LASTING_S_MAX
    for header in ("Retry-After", "RateLimit"):
        rest_s = told_rest_s(rest_told_by({header: text}), NOW_S)
        assert rest_s is None or 0 <= rest_s < math.inf


def answer(data: bytes) -> None:
    """JSON of anybody is a value, or is refused."""
    tried(partial(decoded_here, data, "fuzzing", 200), RemoteProtocolError)


def signature(data: bytes) -> None:
    """Whatever stands in a signature, somebody who is trusted made it, or it is refused."""
    question: dict[str, Any] = {
        "method": "key",
        "materials": [b64encode(KEY).decode()],
        "identity": "",
        "issuer": "",
        "signature": b64encode(data).decode(),
        "digests": {"a.bin": "0" * 64},
        "others": [],
        "is_whole": True,
    }
    said = answered(question)
    assert len(said) == 1
    assert said.keys() <= {"signer", "refused"}
    assert json.dumps(said).isprintable()
    assert all(text.isprintable() for text in said.values())
