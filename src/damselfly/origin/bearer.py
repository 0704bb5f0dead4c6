"""The tokens of registries: who asks for which repository, and what is shown for it.

A registry answers 401 and names a token service, often on another host. That service is shown the
name and the password, or nothing, and gives a token for one repository and what is to be done
there. The token goes to the registry alone, and the password to the service alone. A token that a
caller brings goes to the registry and nowhere else.

A token is kept for whoever showed the same credentials, for the same repository and actions, until
shortly before it ends. One that is refused earlier is renewed once; refused again, it is a refusal.
"""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlencode, urlsplit

from damselfly.errors import OriginDeniedError, RemoteProtocolError
from damselfly.model import canonical
from damselfly.model.oci_name import OCIName
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.challenge import Challenge, parse_challenges
from damselfly.origin.docker_config import registry_access
from damselfly.origin.web import Web, check_status, shown

PULL = "pull"
PUSH = "pull,push"

KEPT_MAX = 256
ANSWER_BYTES_MAX = 64 << 10
TOKEN_CHARS_MAX = 16 << 10
LIFE_DEFAULT_S = 60.0
"""What a token lives whose service does not say, as the specification has it."""
LIFE_MAX_S = 3600.0
EARLY_S = 10.0
"""A token is renewed so long before its end: clocks differ, and requests take a while."""


@dataclass(frozen=True, slots=True, repr=False)
class Asking:
    """Somebody who wants to do something in a repository."""

    address: str
    """The scheme and host of the registry."""
    name: OCIName
    actions: str
    access: Access

    @property
    def key(self) -> tuple[str, str, str, Access]:
        """Whose token it is."""
        return self.address, self.name.repository, self.actions, self.access


@dataclass
class _Entry:
    """What is known about one asker. `proof` is None before anything was answered."""

    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    renewing: asyncio.Lock = field(default_factory=asyncio.Lock)
    proof: Access | None = None
    challenge: Challenge | None = None
    ends_s: float = 0.0


class Tokens:
    """Every token of an agent. Belongs to one event loop."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._entries: OrderedDict[tuple[str, str, str, Access], _Entry] = OrderedDict()

    def opening(self, asking: Asking) -> asyncio.Lock:
        """Held by the one who finds out what the registry wants to be shown."""
        return self._entry(asking).opening

    def knows(self, asking: Asking) -> bool:
        """Whether the registry has said what it wants to be shown."""
        return self._entry(asking).proof is not None

    def accepted(self, asking: Asking, proof: Access) -> None:
        """The registry let somebody in who showed this."""
        entry = self._entry(asking)
        if entry.proof is None:
            entry.proof = proof

    async def current(self, asking: Asking) -> Access:
        """What to show now: what was asked for, or at first what costs nothing to show."""
        entry = self._entry(asking)
        if entry.challenge is None:
            return entry.proof or await _first(asking)
        async with entry.renewing:
            if entry.proof is None or time.monotonic() >= entry.ends_s:
                await self._renew(asking, entry, entry.challenge)
            assert entry.proof is not None
            return entry.proof

    async def renewed(self, asking: Asking, refused: Access, header: str) -> Access:
        """What to show after `refused` was answered with 401 and this `WWW-Authenticate`.

        Raises:
            OriginDeniedError: there is nothing else to show.
        """
        entry = self._entry(asking)
        async with entry.renewing:
            if entry.proof is None or entry.proof == refused:
                await self._renew(asking, entry, _chosen(asking, header))
            assert entry.proof is not None
            return entry.proof

    async def anew(self, asking: Asking) -> None:
        """Forget a token, so that the next request shows one that was given after this."""
        entry = self._entry(asking)
        async with entry.renewing:
            entry.proof, entry.ends_s = None, 0.0

    def _entry(self, asking: Asking) -> _Entry:
        entry = self._entries.setdefault(asking.key, _Entry())
        self._entries.move_to_end(asking.key)
        if len(self._entries) > KEPT_MAX:
            self._entries.popitem(last=False)
        return entry

    async def _renew(self, asking: Asking, entry: _Entry, challenge: Challenge) -> None:
        access = await shown_by(asking)
        if challenge.scheme == "basic":
            if access.username is None:
                raise OriginDeniedError(f"{asking.name.shown}: the registry wants a password")
            proof, life_s = access, float("inf")
        else:
            proof, life_s = await self._given(asking, challenge, access)
        entry.challenge = challenge
        entry.proof = proof
        entry.ends_s = time.monotonic() + life_s - min(EARLY_S, life_s / 10)

    async def _given(
        self, asking: Asking, challenge: Challenge, access: Access
    ) -> tuple[Access, float]:
        """Ask the token service."""
        if access.token is not None:
            raise OriginDeniedError(f"{asking.name.shown}: the registry refuses the token")
        url = _service(asking, challenge)
        doing = f"asking {shown(url)} for a token to {asking.actions} {asking.name.shown}"
        answer = await self._web.send("GET", url, access=access, bytes_max=ANSWER_BYTES_MAX)
        check_status(answer, doing)
        try:
            return _token(answer.body)
        except ValueError as exc:
            raise RemoteProtocolError(f"{doing}: no token in the answer") from exc


async def shown_by(asking: Asking) -> Access:
    """The credentials of somebody; the agent's own may be in the environment."""
    access = asking.access
    if access.is_own and access.authorization is None:
        name = asking.name
        return await asyncio.to_thread(registry_access, name.registry, name.repository)
    return access


async def _first(asking: Asking) -> Access:
    """What is shown unasked: a token. A password waits until somebody wants it."""
    access = await shown_by(asking)
    return access if access.token is not None else ANONYMOUS


def _chosen(asking: Asking, header: str) -> Challenge:
    challenges = parse_challenges(header)
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme:
                return challenge
    schemes = ", ".join(challenge.scheme for challenge in challenges[:4]) or "nothing"
    raise OriginDeniedError(
        f"{asking.name.shown}: the registry answers 401 and wants {schemes[:80]}, which is not"
        " spoken here"
    )


def _service(asking: Asking, challenge: Challenge) -> str:
    """The URL to ask for a token.

    Raises:
        RemoteProtocolError: the realm is no address.
        OriginDeniedError: it is plain HTTP, and the registry is not.
    """
    realm = challenge.realm
    try:
        parts = urlsplit(realm)
        is_address = parts.scheme in {"https", "http"} and bool(parts.hostname) and realm.isascii()
        is_address = is_address and realm.isprintable() and " " not in realm and parts.port != 0
    except ValueError:
        is_address, parts = False, urlsplit("")
    if not is_address or "@" in parts.netloc or parts.fragment:
        raise RemoteProtocolError(f"{asking.name.shown}: the realm {realm[:120]!r} is no address")
    if parts.scheme != "https" and asking.address.startswith("https:"):
        raise OriginDeniedError(
            f"{asking.name.shown}: its token service {shown(realm)[:120]} is plain HTTP, where a"
            " password could be read by others"
        )
    # A registry may call a repository otherwise than its users; what is to be done is our word.
    resource, _, said = challenge.scope.rpartition(":")
    if not said or not resource.startswith("repository:"):
        resource = f"repository:{asking.name.repository}"
    query = {"service": challenge.service} if challenge.service else {}
    query["scope"] = f"{resource}:{asking.actions}"
    return f"{realm}{'&' if parts.query else '?'}{urlencode(query)}"


def _token(data: bytes) -> tuple[Access, float]:
    fields = cast("dict[str, object]", canonical.expect(canonical.decode(data), dict, "the answer"))
    token = canonical.expect(fields.get("token") or fields.get("access_token"), str, "token")
    if not 0 < len(token) <= TOKEN_CHARS_MAX or not all("!" <= char <= "~" for char in token):
        raise ValueError("the token is empty, too long, or has characters that no header may have")
    match fields.get("expires_in"):
        case bool():
            life_s = LIFE_DEFAULT_S
        case int(said) | float(said) if said > 0:
            life_s = float(min(said, LIFE_MAX_S))
        case _:
            life_s = LIFE_DEFAULT_S
    return Access(token=token), life_s
