"""A keeper in memory: what the store does for a swarm, without a disk."""

import os
import tempfile
from collections.abc import Sequence

from damselfly.model.bitmap import Bitmap
from damselfly.model.digest import Digest
from damselfly.model.plan import Plan


class MemoryKeeper:
    """Chunks in an anonymous file, so that they can be served by descriptor."""

    def __init__(self, plan: Plan, digests: Sequence[Digest | None]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._plan = plan
        self._digests = list(digests)
        self._have = Bitmap(plan.chunk_count)
        self._offsets = [0]
        for length in plan.lengths:
            self._offsets.append(self._offsets[-1] + length)
        self.writes = 0

    def have(self) -> Bitmap:
        return self._have.copy()

    def digests(self) -> list[Digest | None]:
        return self._digests

    def write(self, index: int, digest: Digest, data: memoryview) -> None:
        os.pwrite(self._file.fileno(), data, self._offsets[index])
        self._digests[index] = digest
        self._have.add(index)
        self.writes += 1

    def copy_local(self, index: int, digest: Digest) -> bool:
        return False

    @property
    def has_others(self) -> bool:
        return False

    def locate(self, digest: Digest) -> "Held | None":
        for index, known in enumerate(self._digests):
            if known == digest and index in self._have:
                return Held(self._file.fileno(), self._offsets[index], self._plan.lengths[index])
        return None

    def read(self, index: int) -> bytes:
        return os.pread(self._file.fileno(), self._plan.lengths[index], self._offsets[index])

    def close(self) -> None:
        self._file.close()


class Held:
    """A chunk in the anonymous file."""

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self.fd = fd
        self.offset = offset
        self.length = length

    def close(self) -> None:
        pass
