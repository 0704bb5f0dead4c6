"""Open descriptors, kept between chunks: a file is opened once, not once per chunk."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable


class Descriptor:
    """An open file that several threads may be using: read and write it with offsets only."""

    __slots__ = ("fd", "key", "users")

    def __init__(self, key: int, fd: int) -> None:
        self.key = key
        self.fd = fd
        self.users = 0


class Descriptors:
    """An LRU of open files by the store's file id.

    Any thread may call. A descriptor in use is never closed; past the limit, the unused ones are,
    oldest first, so at most `limit` plus those in use are open.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[int, Descriptor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def acquire(self, key: int, opener: Callable[[], int]) -> Descriptor:
        """Use the file `key`, opened with `opener` if it is not open."""
        with self._lock:
            if (found := self._open.get(key)) is not None:
                self._open.move_to_end(key)
                found.users += 1
                return found
        fresh = Descriptor(key, opener())  # Without the lock: a disk may take its time.
        with self._lock:
            descriptor = self._open.setdefault(key, fresh)
            descriptor.users += 1
            surplus = self._surplus()
        if descriptor is not fresh:
            surplus.append(fresh.fd)
        _close_all(surplus)
        return descriptor

    def release(self, descriptor: Descriptor) -> None:
        """End one use."""
        with self._lock:
            assert descriptor.users > 0, "released more often than acquired"
            descriptor.users -= 1
            is_forgotten = self._open.get(descriptor.key) is not descriptor
            surplus = self._surplus()  # It may be among these; then it was not forgotten.
            if is_forgotten and not descriptor.users:
                surplus.append(descriptor.fd)
        _close_all(surplus)

    def forget(self, key: int) -> None:
        """Open the file afresh next time; who is using it now keeps what there is."""
        with self._lock:
            descriptor = self._open.pop(key, None)
            surplus = [descriptor.fd] if descriptor is not None and not descriptor.users else []
        _close_all(surplus)

    def close(self) -> None:
        """Forget every file."""
        for key in list(self._open):
            self.forget(key)

    def _surplus(self) -> list[int]:
        excess = len(self._open) - self._limit
        if excess <= 0:
            return []
        unused = [key for key, descriptor in self._open.items() if not descriptor.users][:excess]
        return [self._open.pop(key).fd for key in unused]


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
