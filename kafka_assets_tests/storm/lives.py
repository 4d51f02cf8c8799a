"""The short lives of the command line: one forked process after the other, each killed at some moment.

Imported by the fork server, which has all modules loaded and no client, connection or thread.
"""

# ruff: noqa: E402, I001, F401  what is imported is to be watched from its first moment, and to be there
from __future__ import annotations

import os
import sys
from pathlib import Path

from kafka_assets_tests.storm import points

points.install()

# What Dagster imports when it opens an instance, which would be half of a life.
import dagster._core.storage.sqlite_storage
import dagster._core.storage.upath_io_manager
import kafka_assets.orchestration.assets
import kafka_assets.orchestration.ingest
from kafka_assets.cli import app


def live(folder: Path, command: list[str], *, files: bool, again: bool) -> None:
    """Run a command, over and over if it is to, until it fails or this process is killed.

    Args:
        folder: Has the streams file.
        command: Of the command line.
        files: Stage every slice in a file.
        again: Run it again when it is done.
    """
    os.environ[points.ARMED] = str(folder / "armed")
    os.environ.pop("DAGSTER_HOME", None)
    os.chdir(folder)
    if files:
        kafka_assets.orchestration.assets.MEMORY_BYTES = 0
    with Path("words").open("a") as words:
        os.dup2(words.fileno(), 1)
        os.dup2(words.fileno(), 2)
        code = app.run([*command, "--json"], words)
        while again and code == 0:
            code = app.run([*command, "--json"], words)
        words.flush()
    sys.exit(code)
