"""The Receiver's logs: the blocks themselves, and what became of each.

As in Spark, a log is flushed to the operating system after each record and not synced to the disk, so it
outlives a killed process, not a lost machine. Every life of the process writes files of its own: a torn
record is the last thing in its file.
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, TextIO

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LENGTH = struct.Struct(">q")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block lies in the block log: file, position and length in bytes."""

    file: str
    position: int
    length: int


class BlockLog:
    """The write-ahead log of received blocks, as Arrow IPC with a length before each."""

    def __init__(self, folder: Path, life: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._name = f"blocks-{life:06d}"
        self._file: BinaryIO = (folder / self._name).open("wb", buffering=0)
        self._position = 0

    def append(self, block: pa.RecordBatch) -> Place:
        """Write a block; return where it lies."""
        buffer = io.BytesIO()
        with pa.ipc.new_stream(buffer, block.schema) as writer:
            writer.write_batch(block)
        data = _LENGTH.pack(buffer.tell()) + buffer.getbuffer()
        self._file.write(data)
        place = Place(self._name, self._position, len(data))
        self._position += len(data)
        return place

    def read(self, place: Place) -> pa.RecordBatch:
        """Read a block back."""
        with (self._folder / place.file).open("rb") as file:
            file.seek(place.position + _LENGTH.size)
            return pa.ipc.open_stream(file.read(place.length - _LENGTH.size)).read_next_batch()

    def clean(self, kept: set[str]) -> None:
        """Remove the files that hold no block still needed."""
        for path in self._folder.glob("blocks-*"):
            if path.name != self._name and path.name not in kept:
                path.unlink()


class Journal:
    """The log of events: a block was added, a batch was given its blocks, a batch is done.

    Attributes:
        blocks: The log of blocks beside it.
        open_batches: Batches that a life before this one began and did not note as done.
        unassigned: Blocks that were added before this life and belong to no batch yet.
    """

    def __init__(self, events: Path, blocks: Path) -> None:
        events.mkdir(parents=True, exist_ok=True)
        files = sorted(events.glob("events-*"))
        self.open_batches: dict[int, list[Place]] = {}
        self.unassigned: list[Place] = []
        self._next = 0
        for path in files:
            self._replay(path)
        self._file: TextIO = (events / f"events-{len(files):06d}").open("w", buffering=1)
        self.blocks = BlockLog(blocks, len(files))

    def added(self, place: Place) -> None:
        """Note a block."""
        self._note("added", -1, [place])

    def began(self, places: Sequence[Place]) -> int:
        """Note the blocks of a batch before it runs; return the batch."""
        batch, self._next = self._next, self._next + 1
        self._note("began", batch, places)
        return batch

    def done(self, batch: int) -> None:
        """Note a batch whose output is written."""
        self._note("done", batch, ())

    def _note(self, kind: str, batch: int, places: Sequence[Place]) -> None:
        words = [[place.file, place.position, place.length] for place in places]
        self._file.write(json.dumps([kind, batch, words]) + "\n")

    def _replay(self, path: Path) -> None:
        for line in path.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                return
            kind, batch, words = json.loads(line)
            places = [Place(*each) for each in words]
            if kind == "added":
                self.unassigned += places
            elif kind == "began":
                self.open_batches[batch] = places
                self.unassigned = [each for each in self.unassigned if each not in places]
                self._next = batch + 1
            else:
                self.open_batches.pop(batch, None)
