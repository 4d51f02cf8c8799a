"""Staged files of committed slices, written over again by the process that fetches ahead.

The pages of a fresh file have to be found, which costs a multiple of writing over what is there.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


_PREFIX = "ahead-"


def spares_directory(staging: Path, stream: str, pid: int) -> Path:
    """Return where a process that fetches ahead has its spares, among the directories of a stream's batches."""
    return staging / stream / f"{_PREFIX}{pid}"


def holds_spares(name: str) -> bool:
    """Whether a directory of that name has spares and is no batch's."""
    return name.startswith(_PREFIX)


class Spares:
    """A second name for each file that was staged; a file with no other name left is free to be used again.

    Whoever commits a slice just removes it, and needs to know nothing of this.

    Args:
        directory: For these names alone, on the file system of the staged files; made when first needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = count()

    def keep(self, file: Path) -> None:
        """Note a file that is whole, before anybody knows of it."""
        # Some file systems have no second names; then each file is a fresh one.
        with suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            os.link(file, self._directory / str(next(self._numbers)))

    def take(self, path: Path) -> bool:
        """Give a free file, whatever it holds, the name `path`; return whether there was one."""
        with suppress(OSError):
            for spare in self._directory.iterdir():
                if spare.stat().st_nlink == 1:
                    spare.rename(path)
                    return True
        return False

    def remove(self) -> None:
        """Let go of all."""
        shutil.rmtree(self._directory, ignore_errors=True)
