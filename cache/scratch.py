"""A few buffers of one chunk, for copying and re-reading. They bound memory, whoever calls."""

import mmap
import threading
from collections.abc import Generator
from contextlib import contextmanager

from damselfly.cache.disk import BLOCK_BYTES, aligned_buffer
from damselfly.model.chunker import CHUNK_BYTES_MAX

SCRATCH_BYTES = CHUNK_BYTES_MAX + 2 * BLOCK_BYTES
"""The largest chunk, and what a direct read takes on either side of it."""


class Scratch:
    """The pool. Any thread takes a buffer, waiting while all are out."""

    def __init__(self, limit: int) -> None:
        self._tickets = threading.BoundedSemaphore(limit)
        self._unused: list[mmap.mmap] = []

    @contextmanager
    def take(self) -> Generator[memoryview, None, None]:
        """Lend a buffer of `SCRATCH_BYTES` on a page boundary; no view of it may stay behind."""
        with self._tickets:
            try:
                buffer = self._unused.pop()
            except IndexError:
                buffer = aligned_buffer(SCRATCH_BYTES)
            try:
                with memoryview(buffer) as view:
                    yield view
            finally:
                self._unused.append(buffer)
