"""Ctrl-C in the midst of libraries that take the signal for themselves and make a failure of it, or nothing."""

from __future__ import annotations

import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def interruptible() -> Iterator[None]:
    """End the block with KeyboardInterrupt, however it ends, if the user interrupted it.

    Dagster fails the run, or goes on where the signal came between two steps; DuckDB fails the query.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told, tell = socket.socketpair()
    with told, tell:
        told.setblocking(False)
        tell.setblocking(False)
        before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            if not {signal.SIGINT, signal.SIGTERM}.isdisjoint(_received(told)):
                raise KeyboardInterrupt


def _received(told: socket.socket) -> bytes:
    try:
        return told.recv(4096)
    except BlockingIOError:
        return b""
