"""What is noted of a batch beside its staged files, for a run that finds the warehouse locked.

Its ranges, as they were planned, so that it can be fetched; what was staged whole, so that the next attempt
need not fetch it again. The ledger stays what counts: the commit compares with it, and a note that is lost
costs time and nothing else. Both are of batches that were never committed, generation 0.
"""

from __future__ import annotations

import json
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kafka_assets.batch_lock import batch_directory
from kafka_assets.offsets import PlannedRange, merge
from kafka_assets.staged import StagedSlice

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOM = "0-room"
"""The note of `room.py`."""

_PLAN = "0-plan"
_STAGED = "0-staged-"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""A note that is missing, cut short, or of another version."""


def note_plan(staging: Path, stream: str, batch: str, ranges: Sequence[PlannedRange]) -> None:
    """Note the ranges of a batch that the ledger has; on a full disk there is no note."""
    _write(batch_directory(staging, stream, batch) / _PLAN, [planned.to_row() for planned in ranges])


def noted_plan(staging: Path, stream: str, batch: str) -> tuple[PlannedRange, ...] | None:
    """Return the ranges noted of a batch; None if there is no such note."""
    with suppress(*_UNREADABLE):
        rows = json.loads((batch_directory(staging, stream, batch) / _PLAN).read_bytes())
        return tuple(PlannedRange.from_row(row) for row in rows)
    return None


def note_staged(directory: Path, made_by: str, staged: Sequence[StagedSlice]) -> None:
    """Note what was staged whole in a batch's directory, with all that was seen of it.

    Args:
        directory: Of the batch.
        made_by: Names the settings that it was fetched and decoded with.
        staged: The slices, each in a file.
    """
    slices = [one.to_dict() for one in staged]
    _write(directory / _name_of(_planned(staged)), {"made_by": made_by, "slices": slices})


def noted_staged(directory: Path, made_by: str, ranges: Sequence[PlannedRange]) -> list[StagedSlice] | None:
    """Return what is staged of exactly these ranges by the same settings; None if nothing is, or a file is gone.

    The files are not read: whoever opens them checks them.
    """
    with suppress(*_UNREADABLE):
        note = json.loads((directory / _name_of(ranges)).read_bytes())
        staged = [StagedSlice.from_dict(one) for one in note["slices"]]
        same = note["made_by"] == made_by and _whole(_planned(staged)) == _whole(ranges)
        if same and all(Path(one.path).is_file() for one in staged):
            return staged
    return None


def forget(staging: Path, stream: str, batch: str) -> None:
    """Remove the notes of a batch that is committed."""
    directory = batch_directory(staging, stream, batch)
    for note in (directory / ROOM, directory / _PLAN, *directory.glob(f"{_STAGED}*")):
        note.unlink(missing_ok=True)


def _planned(staged: Sequence[StagedSlice]) -> list[PlannedRange]:
    return [piece.evidence.planned for one in staged for piece in one.ranges]


def _whole(ranges: Sequence[PlannedRange]) -> str:
    """Return what ranges are in all, however they are cut into slices."""
    merged = [str(one) for one in merge(planned.range for planned in ranges)]
    told = {f"{planned.range.topic_partition} {planned.incarnation} {planned.topic_id}" for planned in ranges}
    return ", ".join([*merged, *sorted(told)])


def _name_of(ranges: Sequence[PlannedRange]) -> str:
    return f"{_STAGED}{zlib.crc32(_whole(ranges).encode()):08x}"


def _write(path: Path, content: object) -> None:
    temporary = path.with_name(f"{path.name}-{os.getpid()}.tmp")
    # A full disk, or the sweep of another process that removes the folder just now.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.rename(path)
