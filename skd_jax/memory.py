"""How this process keeps its memory."""

import contextlib
import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Lets the C library keep what is freed, for the next training step to use again.

    By default glibc gives large blocks back to the system as soon as they are freed. On CPU every
    step frees and allocates the same buffers, and each time the system must clear them page by
    page: a quarter of the demo's time. The price is that the process never shrinks again.

    Returns:
      Whether the C library took the settings; others than glibc (macOS, musl) are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 * 2**20}
        return all(mallopt(name, value) for name, value in settings.items())
    return False
