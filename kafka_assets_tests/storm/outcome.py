"""What comes of kills, and the processes that are killed."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext
    from pathlib import Path

TAIL = 3000


class StormError(AssertionError):
    """Something did what it must never do."""


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        at: Counts the kills by their place.
        places: Where there was to be a kill at least once.
    """

    at: Counter[str] = field(default_factory=Counter)
    places: set[str] = field(default_factory=set)
    records: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.at.total()

    @property
    def missed(self) -> list[str]:
        return sorted(self.places - self.at.keys())

    @property
    def holds(self) -> bool:
        return not (self.lost or self.doubled or self.wrong or self.problems)

    def add(self, other: Self) -> None:
        self.at += other.at
        self.places |= other.places
        self.records += other.records
        self.lost += other.lost
        self.doubled += other.doubled
        self.wrong += other.wrong
        self.problems += other.problems

    def __str__(self) -> str:
        return (
            f"{self.kills:,} kills, {self.records:,} records: {self.lost} lost, {self.doubled} doubled,"
            f" {self.wrong} with another value or never committed, {len(self.problems)} problems"
        )


@cache
def forks() -> ForkServerContext:
    """Return where processes come from that have all imports behind them and no client, connection or thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kafka_assets_tests.storm.lives", "kafka_assets_tests.storm.said"])
    return context


def words_in(folder: Path, name: str = "words") -> str:
    """Return the last that was written there."""
    file = folder / name
    return file.read_text(errors="replace")[-TAIL:] if file.exists() else "(nothing)"
