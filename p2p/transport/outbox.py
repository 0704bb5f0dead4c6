"""Bodies on their way out: what the driver sends after a DATA frame's header."""

import asyncio
from collections import deque
from collections.abc import Callable

from damselfly.p2p.transport.channel import Channel

_ZEROS = bytes(64 * 1024)
_BUFFERS_MAX = 64  # of one sendmsg


class BytesOutbox:
    """Body bytes in memory; `on_close` runs once, however it ends."""

    def __init__(self, on_close: Callable[[], None] | None = None) -> None:
        self._buffers: deque[memoryview] = deque()
        self._on_close = on_close
        self._drained: asyncio.Future[None] | None = None
        self.is_short = False

    def push(self, data: bytes) -> None:
        """Add bytes; the core is to be told by `offer`."""
        self._buffers.append(memoryview(data))

    async def drained(self) -> None:
        """Wait until all that was pushed is with the kernel."""
        if self._buffers:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def send(self, channel: Channel, head: memoryview, count: int) -> int:
        """Send `head` and then up to `count` body bytes; return how many bytes went."""
        buffers = [head] if head else []
        for buffer in self._buffers:
            if not count or len(buffers) == _BUFFERS_MAX:
                break
            part = buffer[:count]
            buffers.append(part)
            count -= len(part)
        return channel.send(buffers)

    def advance(self, count: int) -> None:
        """So many body bytes are gone."""
        while count:
            buffer = self._buffers[0]
            if count < len(buffer):
                self._buffers[0] = buffer[count:]
                return
            count -= len(buffer)
            self._buffers.popleft()
        if not self._buffers and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def close(self) -> None:
        """Let go of the body."""
        self._buffers.clear()
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            on_close()


class FileOutbox:
    """Body bytes in an open file, sent by the kernel. Closing it is the giver's `on_close`."""

    def __init__(self, fd: int, offset: int, on_close: Callable[[], None]) -> None:
        self._fd = fd
        self._offset = offset
        self._on_close: Callable[[], None] | None = on_close
        self.is_short = False

    def send(self, channel: Channel, head: memoryview, count: int) -> int:
        """Send `head`, or when it is gone up to `count` body bytes; return how many bytes went."""
        if head:
            return channel.send((head,), more=True)
        if not self.is_short:
            sent = channel.sendfile(self._fd, self._offset, count)
            if sent:
                return sent
            # The file is shorter than it was said to be. The frame must be filled all the same;
            # the driver resets the stream after it, so nobody takes these bytes for the file's.
            self.is_short = True
        return channel.send((_ZEROS[:count],))

    def advance(self, count: int) -> None:
        """So many body bytes are gone."""
        self._offset += count

    def close(self) -> None:
        """Let go of the file."""
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            on_close()


Outbox = BytesOutbox | FileOutbox
