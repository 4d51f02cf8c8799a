"""Freed memory, which allocators keep for what comes next: given back to the system where nothing like it comes."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import pyarrow as pa

keeps = False
"""Whether what one fetch frees is left to the next: in a process that does little else, and has few arenas."""

_MUCH_BYTES = 32 * 1024**2


def give_back(fetched_bytes: int) -> None:
    """Give back what a fetch of so many bytes has freed, if that is much."""
    if keeps or fetched_bytes <= _MUCH_BYTES:
        return
    # glibc keeps what freed messages took, for each thread that had some: 1 GB after ten fetches of 200 MB.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    # Arrow's allocator keeps as much for each thread.
    pa.default_memory_pool().release_unused()
