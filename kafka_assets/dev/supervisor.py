"""Runs one command for as long as its parent lives: ``supervisor.py OUTPUT COMMAND...``.

A pipe, not ``PR_SET_PDEATHSIG`` in the parent's child: that signal fires when the parent's *thread* dies, and
needs code between fork and exec of a process that has threads. The kernel closes the pipe however the parent
dies. A forked child of the parent may hold the pipe's other end open, so the parent's id is watched as well.
The command itself does get the signal, from this process, which starts it before it has a second thread.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading

_GRACE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop_when_orphaned(process: subprocess.Popen[bytes], parent: int) -> None:
    while os.getppid() == parent:
        if select.select([0], [], [], 1.0)[0]:
            break
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def main(output: str, *command: str) -> int:
    """Run the command, print its process id, and end it when standard input closes."""
    parent = os.getppid()
    with open(output, "ab") as file:  # noqa: PTH123 - starts in half the time without pathlib
        process = subprocess.Popen(  # noqa: S603 - the caller's own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - there is only one thread yet
        )
    print(process.pid, flush=True)  # noqa: T201 - the answer to the parent
    threading.Thread(target=_stop_when_orphaned, args=(process, parent), daemon=True).start()
    return process.wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
