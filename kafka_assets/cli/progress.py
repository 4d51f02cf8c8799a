"""Progress of long work on stderr: a bar on a terminal, quiet lines elsewhere."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka_assets.cli.session import Session
    from kafka_assets.orchestration.ingest import Progress as ProgressPort

LINE_SECONDS = 10.0


@contextmanager
def progress_for(session: Session, title: str) -> Iterator[ProgressPort]:
    """Show progress of one piece of work until the block ends."""
    if not session.errors.is_terminal:
        yield _Lines(session, title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=session.errors, transient=True) as bar:
        yield _Bar(bar, title)


class _Bar:
    def __init__(self, bar: Progress, title: str) -> None:
        self._bar = bar
        self._task = bar.add_task(title, total=None)

    def total(self, offsets: int) -> None:
        self._bar.update(self._task, total=offsets)

    def advance(self, offsets: int) -> None:
        self._bar.advance(self._task, offsets)

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False)


class _Lines:
    """A line when it begins to matter: after ten seconds, and every ten from there."""

    def __init__(self, session: Session, title: str) -> None:
        self._session = session
        self._title = title
        self._total = 0
        self._done = 0
        self._last = time.monotonic()

    def total(self, offsets: int) -> None:
        self._total = offsets

    def advance(self, offsets: int) -> None:
        self._done += offsets
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            self._session.say(f"{self._title}: {self._done:,} of {self._total:,} offsets")

    def say(self, text: str) -> None:
        self._session.say(text)
