"""Where measurements happen: folders on the project's own disk, and nothing of the user's own settings."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OF_THE_USER = ("DAGSTER_HOME", "KAFKA_ASSETS_CONFIG")


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, removed with all that was written into it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a measured process: what the user's own shell points to is no business of it."""
    return {name: value for name, value in os.environ.items() if name not in _OF_THE_USER} | more
