"""A registry, asked by the distribution protocol: its manifests, its blobs, and whom it lets in.

What is asked for by its digest is verified here where it is small: manifests, and our own manifest
that a push left. Layers are verified by whoever pulls them.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping, Set as AbstractSet
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from damselfly.errors import DigestMismatchError, OriginDeniedError, RemoteProtocolError
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.bearer import PULL, Asking, Tokens
from damselfly.origin.oci_manifest import ACCEPTED, OCI_MANIFEST_BYTES_MAX, Blob
from damselfly.origin.oci_name import OCIName
from damselfly.origin.renewed import Renewed
from damselfly.origin.web import Answer, Body, HTTPStream, Wanted, Web, check_status


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest as a registry has it; `name` has its digest."""

    name: OCIName
    body: bytes


class Registry:
    """Every registry, for everybody who asks. Belongs to one event loop."""

    def __init__(self, web: Web, insecure: AbstractSet[str] = frozenset()) -> None:
        self._web = web
        self._insecure = insecure
        self._tokens = Tokens(web)
        self._renewed = Renewed(web)

    def place(self, name: OCIName) -> str:
        """The URL below which a repository has everything."""
        return f"{name.address(self._insecure)}/v2/{name.repository}"

    def blob_place(self, name: OCIName, digest: str) -> str:
        """The URL of a blob."""
        return f"{self.place(name)}/blobs/{digest}"

    async def send(
        self,
        method: str,
        url: str,
        name: OCIName,
        access: Access,
        *,
        actions: str = PULL,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        bytes_max: int = 1 << 20,
        follows: bool = True,
        sending_s: float = 0.0,
    ) -> Answer:
        """Ask a registry something as `access`; the answer may have any status but 401.

        Raises:
            OriginDeniedError: it lets `access` not in, also after it was shown what it wanted.
        """
        asking = self._asking(name, access, actions)

        async def sent(proof: Access) -> Answer:
            return await self._web.send(
                method,
                url,
                access=proof,
                headers=headers,
                body=body,
                bytes_max=bytes_max,
                follows=follows,
                sending_s=sending_s,
            )

        if not is_of(url, asking.address):
            return await sent(ANONYMOUS)  # It was sent on to another host, which knows why.
        proof = await self._tokens.current(asking)
        answer = await sent(proof)
        if answer.status == 401:
            header = answer.headers.get("WWW-Authenticate", "")
            proof = await self._tokens.renewed(asking, proof, header)
            answer = await sent(proof)
            check_refused(answer, name, access)
        self._tokens.accepted(asking, proof)
        return answer

    async def manifest(self, name: OCIName, access: Access) -> Document:
        """Get a manifest or an index, and find its digest.

        Raises:
            OriginNotFoundError, OriginDeniedError, OriginUnavailableError: as their names say.
            DigestMismatchError: the registry sent something else than its digest says.
        """
        answer = await self.send(
            "GET",
            f"{self.place(name)}/manifests/{name.reference}",
            name,
            access,
            headers={"Accept": ", ".join(ACCEPTED)},
            bytes_max=OCI_MANIFEST_BYTES_MAX,
        )
        check_status(answer, f"getting the manifest of {name.shown}")
        actual = await sha256_of(answer.body)
        said = answer.headers.get("Docker-Content-Digest", "").strip()
        expected = name.digest or (said if said.startswith("sha256:") else actual)
        if actual != expected:
            raise DigestMismatchError(expected[:80], actual, f"the manifest of {name.shown}")
        return Document(name.at(actual), answer.body)

    async def blob(self, name: OCIName, blob: Blob, access: Access) -> bytes:
        """Get a blob that is small enough to be held.

        Raises:
            DigestMismatchError: the registry sent something else than its digest says.
        """
        url = self.blob_place(name, blob.digest)
        answer = await self.send("GET", url, name, access, bytes_max=blob.size)
        doing = f"getting {blob.digest} of {name.shown}"
        check_status(answer, doing)
        if len(answer.body) != blob.size:
            raise RemoteProtocolError(
                f"{doing}: {len(answer.body)} bytes, where its manifest says {blob.size}"
            )
        actual = await sha256_of(answer.body)
        if actual != blob.digest:
            raise DigestMismatchError(blob.digest, actual, f"a blob of {name.shown}")
        return answer.body

    @asynccontextmanager
    async def span(
        self,
        name: OCIName,
        blob: Blob,
        start: int,
        stop: int,
        access: Access,
        *,
        is_proof: bool = False,
    ) -> AsyncGenerator[HTTPStream]:
        """Read a span of a blob, where the registry sends one that it has elsewhere.

        A proof trusts nothing that is remembered of that.
        """
        async with AsyncExitStack() as stack:
            yield await self._entered(stack, name, blob, start, stop, access, is_proof=is_proof)

    async def prove(self, name: OCIName, blob: Blob, access: Access) -> None:
        """Prove by a byte that `access` may read a blob now, whatever it might before."""
        url = self.blob_place(name, blob.digest)
        asking = self._asking(name, access, PULL)
        await self._tokens.anew(asking)
        check_status(
            await self.send("HEAD", url, name, access, follows=False),
            f"looking at {blob.digest} of {name.shown}",
        )
        if not blob.size:
            return
        measured = await self._web.measure(url, await self._tokens.current(asking))
        if measured.is_html:
            raise OriginDeniedError(f"{name.shown}: a page was sent where a blob was asked for")
        data = bytearray(1)
        async with self.span(name, blob, 0, 1, access, is_proof=True) as stream:
            await stream.readinto(memoryview(data))

    async def _entered(
        self,
        stack: AsyncExitStack,
        name: OCIName,
        blob: Blob,
        start: int,
        stop: int,
        access: Access,
        *,
        is_proof: bool,
    ) -> HTTPStream:
        asking = self._asking(name, access, PULL)
        url = self.blob_place(name, blob.digest)
        # Spans that come at once do not all find out what the registry wants to be shown.
        async with self._tokens.opening(asking):
            if not self._tokens.knows(asking):
                await self._look(url, name, blob, access)
        for is_last in (False, True):
            proof = await self._tokens.current(asking)
            wanted = Wanted(url, blob.size, blob.digest, start, stop, proof)
            try:
                return await stack.enter_async_context(
                    self._renewed.span(wanted, is_proof=is_proof)
                )
            except OriginDeniedError:
                if is_last:
                    raise
            # A token may end before its time, and then this renews it; or a host that we were sent
            # on to refuses, and may not when it is asked again.
            await self._look(url, name, blob, access)
        raise AssertionError("the last attempt returns or raises")

    async def _look(self, url: str, name: OCIName, blob: Blob, access: Access) -> None:
        answer = await self.send("HEAD", url, name, access, follows=False)
        if answer.status not in {301, 302, 303, 307, 308, 405}:
            check_status(answer, f"looking at {blob.digest} of {name.shown}")

    def _asking(self, name: OCIName, access: Access, actions: str) -> Asking:
        return Asking(name.address(self._insecure), name, actions, access)


def check_refused(answer: Answer, name: OCIName, access: Access) -> None:
    """Raise if somebody is not let in who has shown what was wanted."""
    if answer.status == 401:
        who = "anybody" if access == ANONYMOUS else "the credentials given"
        raise OriginDeniedError(f"{name.shown} does not open to {who}: the registry answered 401")


def is_of(url: str, address: str) -> bool:
    """Whether a URL is on the host of a registry: the same scheme, name and port."""
    return _host_of(url) == _host_of(address)


def _host_of(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


async def sha256_of(data: bytes) -> str:
    """Hash what may be megabytes."""
    return "sha256:" + (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()
