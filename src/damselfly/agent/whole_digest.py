"""SHA-256 of whole files of the store, computed by this node: what signatures are held against.

Files are read chunk by chunk, wherever their chunks lie: of a pull that is not sealed as well.
Blocks on the disk.
"""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event

from damselfly.cache.store import Store
from damselfly.errors import CancelledError, ChunkNotFoundError, IntegrityError
from damselfly.model.manifest import Manifest, ManifestFile

_THREADS = 4
"""A file each: SHA-256 goes from front to back."""


def whole_digests(
    store: Store, manifest: Manifest, numbers: Iterable[int], stopped: Event
) -> dict[str, str]:
    """SHA-256 (hex) by path of the files of these numbers.

    Raises:
        ChunkNotFoundError: one of their chunks is not here any more.
        IntegrityError: the disk refuses.
        CancelledError: `stopped` was set.
    """
    files = [manifest.files[number] for number in sorted(numbers)]
    with ThreadPoolExecutor(_THREADS, "whole") as threads:
        futures = [threads.submit(_sha256, store, file, stopped) for file in files]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            stopped.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
        return {file.path: future.result() for file, future in zip(files, futures, strict=True)}


def whole_content(store: Store, file: ManifestFile) -> bytes:
    """A small file, whole.

    Raises:
        ChunkNotFoundError: one of its chunks is not here.
        IntegrityError: the disk refuses, or it is not what the manifest says.
    """
    data = bytearray()
    for number, chunk in enumerate(file.chunks):
        part = _chunk(store, file, number)
        chunk.digest.verify(part, f"the store ({file.path})")
        data += part
    return bytes(data)


def _sha256(store: Store, file: ManifestFile, stopped: Event) -> str:
    known = store.sha256_of(file.id, is_ours=True)
    if known is not None:
        return known.removeprefix("sha256:")
    whole = hashlib.sha256()
    for number in range(len(file.chunks)):
        if stopped.is_set():
            raise CancelledError(f"hashing {file.path} was stopped")
        part = _chunk(store, file, number)
        file.chunks[number].digest.verify(part, f"the store ({file.path})")
        whole.update(part)
    store.found_whole(file.id, whole.hexdigest(), is_ours=True)
    return whole.hexdigest()


def _chunk(store: Store, file: ManifestFile, number: int) -> bytes:
    chunk = file.chunks[number]
    located = store.locate(chunk.digest)
    if located is None:
        raise ChunkNotFoundError(f"chunk {number} of {file.path} is not here")
    with located:
        try:
            data = os.pread(located.fd, located.length, located.offset)
        except OSError as exc:
            raise IntegrityError(f"reading chunk {number} of {file.path}") from exc
    if len(data) != chunk.length:
        raise ChunkNotFoundError(f"chunk {number} of {file.path} is cut short on the disk")
    return data
