"""Spans of files whose lasting address redirects to a signed one that expires.

Hubs and registries keep large files on other hosts: who asks for one is sent to an address that
carries a signature, and is good for minutes. It is remembered for each file and each asker, so a
span costs one request and not two, until it expires, breaks off or is refused.

A hub says more of a file beside its redirect, so it is asked for that first. A registry says
nothing: a span is read at the lasting address, and where that led is remembered. So one that sends
its files itself is asked nothing besides.

Rule 1: a remembered address that is refused is asked for anew, once. What refuses a new one means
it: that is an error, and never a loop.

Rule 2: a connection that breaks in the middle is unavailability, as it is everywhere. Whoever reads
asks again for the rest, and gets a new address.

Rule 3: what proves who asks is shown to the lasting address alone. A signed one is a secret itself:
it is in no error, no log and no `repr`, and belongs to the asker that it was signed for.

Belongs to one event loop, as the web does.
"""

import asyncio
import base64
import binascii
import json
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import cast
from urllib.parse import parse_qsl, urlsplit
from weakref import WeakValueDictionary

from yarl import URL

from damselfly.errors import DamselflyError, OriginDeniedError, OriginNotFoundError
from damselfly.origin.access import ANONYMOUS, Authorizer
from damselfly.origin.web import AnsweredError, HTTPStream, Wanted, Web

ADDRESSES_MAX = 2048
"""Of 1-2 KB each: 2,048 files at work at once."""
UNDATED_S = 60.0
"""How long an address counts that does not say when it expires."""
LASTING_S_MAX = 3600.0
"""However long it says: rights end, and clocks are wrong."""
MARGIN_S = 10.0
"""A request may be under way for a while before anybody looks at its signature."""

_REFUSALS = (OriginDeniedError, OriginNotFoundError, AnsweredError)
_POLICY_CHARS_MAX = 4096
_SECONDS = re.compile(r"[0-9]{1,12}", re.ASCII)


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """Where the bytes of a file are for a while, and what is shown there."""

    url: str
    access: Authorizer


Ask = Callable[[], Awaitable[Address]]
"""Asks the lasting address where the bytes are."""

_Key = tuple[str, Authorizer]


@dataclass(frozen=True, slots=True, repr=False)
class _Known:
    address: Address
    until_s: float


class Renewed:
    """Reads spans at addresses that expire. Shared by everybody who asks one origin."""

    def __init__(self, web: Web, wall_s: Callable[[], float] = time.time) -> None:
        self._web = web
        self._wall_s = wall_s
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._asking = WeakValueDictionary[_Key, asyncio.Lock]()

    @asynccontextmanager
    async def span(
        self, wanted: Wanted, ask: Ask | None = None, *, is_proof: bool = False
    ) -> AsyncGenerator[HTTPStream]:
        """Read a span; `wanted` has the lasting address and who asks, `ask` finds a signed one.

        Without `ask` it is found where the lasting address leads. A proof trusts nothing that is
        remembered. Raises what `Web.span` and `ask` do.
        """
        async with AsyncExitStack() as stack:
            stream, address = await self._entered(stack, wanted, ask, is_proof=is_proof)
            try:
                yield stream
            except DamselflyError:
                self._forget((wanted.url, wanted.access), address)
                raise

    async def _entered(
        self, stack: AsyncExitStack, wanted: Wanted, ask: Ask | None, *, is_proof: bool
    ) -> tuple[HTTPStream, Address]:
        key = (wanted.url, wanted.access)
        refused: Address | None = None
        while True:
            # Those who come at once wait here for the one who finds it out.
            async with self._lock(key):
                address = None if is_proof else self._usable(key, refused)
                is_new = address is None
                if address is None and ask is None:
                    return await self._followed(stack, wanted)
                if address is None and ask is not None:
                    address = self._remember(key, await ask())
            assert address is not None
            at = replace(wanted, url=address.url, access=address.access)
            try:
                return await stack.enter_async_context(self._web.span(at)), address
            except _REFUSALS as exc:
                self._forget(key, address)
                is_lasting = ask is None and address.url == wanted.url
                if is_new or is_lasting or refused is not None:
                    raise _meant(exc) from exc.__cause__
                refused = address
            except DamselflyError:
                self._forget(key, address)
                raise

    async def _followed(self, stack: AsyncExitStack, wanted: Wanted) -> tuple[HTTPStream, Address]:
        """Read at the lasting address, and remember where it led."""
        key = (wanted.url, wanted.access)
        stream = await stack.enter_async_context(self._web.span(wanted))
        # What sends a file whole goes on from where it is parked, by the address that it has there.
        place = wanted.url if stream.body.is_whole else stream.body.place
        is_same = URL(place, encoded=True).origin() == URL(wanted.url, encoded=True).origin()
        return stream, self._remember(key, Address(place, wanted.access if is_same else ANONYMOUS))

    def _lock(self, key: _Key) -> asyncio.Lock:
        lock = self._asking.get(key)
        if lock is None:
            lock = self._asking[key] = asyncio.Lock()
        return lock

    def _usable(self, key: _Key, refused: Address | None) -> Address | None:
        known = self._known.get(key)
        if known is None or known.until_s <= self._wall_s() or known.address is refused:
            return None
        self._known.move_to_end(key)
        return known.address

    def _remember(self, key: _Key, address: Address) -> Address:
        self._known[key] = _Known(address, expiry_of(address.url, self._wall_s()))
        self._known.move_to_end(key)
        if len(self._known) > ADDRESSES_MAX:
            self._known.popitem(last=False)
        return address

    def _forget(self, key: _Key, address: Address) -> None:
        known = self._known.get(key)
        if known is not None and known.address is address:
            del self._known[key]

    def __repr__(self) -> str:
        return f"<Renewed: {len(self._known)} addresses>"


def _meant(error: DamselflyError) -> DamselflyError:
    # Buckets answer 400 to a signature that they do not like: the others mean it already.
    return OriginDeniedError(str(error)) if isinstance(error, AnsweredError) else error


def expiry_of(url: str, now_s: float) -> float:
    """Until when an address may be used, in seconds since the epoch, as its query says.

    Known are the signatures of S3 (both kinds) and what speaks like it, Google Cloud Storage,
    CloudFront (both kinds) and Azure.
    """
    said = dict(parse_qsl(urlsplit(url).query))
    lasting = _seconds_of(said, now_s)
    if lasting is None:
        return now_s + UNDATED_S
    return min(lasting - MARGIN_S, now_s + LASTING_S_MAX)


def _seconds_of(said: Mapping[str, str], now_s: float) -> float | None:
    for prefix in ("X-Amz", "X-Goog"):
        lasts = said.get(f"{prefix}-Expires", "")
        if _SECONDS.fullmatch(lasts):
            began_s = _instant(said.get(f"{prefix}-Date", ""), "%Y%m%dT%H%M%SZ")
            return (now_s if began_s is None else began_s) + int(lasts)
    if _SECONDS.fullmatch(said.get("Expires", "")):
        return float(said["Expires"])
    if "Policy" in said:
        return _policy_seconds(said["Policy"])
    return _instant(said.get("se", ""), "%Y-%m-%dT%H:%M:%SZ")


def _instant(text: str, form: str) -> float | None:
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _policy_seconds(text: str) -> float | None:
    """When a policy of CloudFront's ends: JSON in base64, with three characters of its own."""
    if len(text) > _POLICY_CHARS_MAX:
        return None
    try:
        data = base64.b64decode(text.translate(str.maketrans("-_~", "+=/")), validate=True)
        policy: object = json.loads(data)
        for name in ("Statement", 0, "Condition", "DateLessThan", "AWS:EpochTime"):
            if isinstance(name, int):
                policy = cast("list[object]", policy)[name]
            else:
                policy = cast("dict[str, object]", policy)[name]
        return float(policy) if type(policy) is int else None
    except (
        binascii.Error,
        ValueError,
        LookupError,
        TypeError,
        OverflowError,
        RecursionError,
    ):
        return None
