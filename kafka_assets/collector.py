"""Python's collector of cycles, held back where thousands of objects come and go and none of them is in a cycle."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

RARELY = 50_000
"""New objects from one look of the collector to the next; 700 by default."""

_lock = threading.Lock()
_users = 0
_before = (700, 10, 10)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let the collector run rarely: it would look at the same objects, and at all modules, again and again.

    It still runs, so that other threads' garbage does not pile up meanwhile.
    """
    global _users, _before  # noqa: PLW0603  the collector's threshold is the process's too
    with _lock:
        if _users == 0:
            _before = gc.get_threshold()
            gc.set_threshold(max(RARELY, _before[0]), *_before[1:])
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                gc.set_threshold(*_before)
