"""Batches staged ahead of their runs, in this process: while one batch commits, the next is being fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Future

    from kafka_assets.staged import StagedSlice

_ahead: dict[tuple[str, str, int], Future[list[StagedSlice]]] = {}


def offer(stream: str, batch: str, generation: int, staged: Future[list[StagedSlice]]) -> None:
    """Offer a batch's staged slices, or the fetch that is making them, to the run that is to come."""
    _ahead[stream, batch, generation] = staged


def adopt(stream: str, batch: str, generation: int) -> list[StagedSlice] | None:
    """Return what was staged ahead for this generation of a batch, waiting for it; None when nothing was.

    Raises:
        KafkaAssetsError: As the fetch did.
    """
    staged = _ahead.pop((stream, batch, generation), None)
    return None if staged is None else staged.result()


def withdraw(stream: str, batch: str, generation: int) -> None:
    """Take back an offer that no run adopted."""
    _ahead.pop((stream, batch, generation), None)
