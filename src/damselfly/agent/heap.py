"""The heap of the C library, told what an agent does with it.

Every read of a socket is an object of up to 256 KiB that lives for a moment. glibc gives such
memory back to the kernel at once and asks for it again at the next read (mallopt(3): what is larger
than M_MMAP_THRESHOLD is mapped by itself, and a heap whose end is free for more than
M_TRIM_THRESHOLD shrinks), so each of its pages is zeroed and faulted in anew: a quarter of the CPU
of a pull from an origin on a busy machine. So the end of the heap is kept.
"""

import ctypes

KEPT_BYTES = 32 << 20
"""Free memory at the end of the heap that stays: all connections' reads at a time, a few times."""
MAPPED_BYTES_MIN = 1 << 20

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>


def keep_heap() -> bool:
    """Keep freed memory for the next read; False where there is no such allocator."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, MAPPED_BYTES_MIN),
        (_M_TRIM_THRESHOLD, KEPT_BYTES),
        (_M_TOP_PAD, KEPT_BYTES // 8),
    )
    return [mallopt(name, value) for name, value in settings] == [1] * len(settings)
