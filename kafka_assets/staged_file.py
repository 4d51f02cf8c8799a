"""How a staged file is written: checked on the way, and under its name only once it is whole."""

from __future__ import annotations

import errno
import shutil
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

import pyarrow as pa
from xxhash import xxh3_64

from kafka_assets.errors import DiskFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_TEMPORARY = ".tmp"
_MIB = 1024**2
_PIECE = _MIB
"""Bytes written at once: Linux 6.18 takes ten times as long over a fresh file on ext4 in pieces of 32 MiB."""

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class StagedFile:
    """A slice being written: counted and checked on the way, under its own name only once it is whole."""

    def __init__(self, path: Path, schema: pa.Schema, offsets: int) -> None:
        self._path = path
        self._temporary = path.with_name(f"{path.name}{_TEMPORARY}")
        self._offsets = offsets
        self._hash = xxh3_64()
        self._rows = 0
        self.size = 0
        with self._naming_full_disk():
            self._file = self._opened()
        self._writer = pa.ipc.new_file(pa.PythonFile(_Sink(self._append), mode="w"), schema)

    def _opened(self) -> IO[bytes]:
        while True:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Another run that has just committed the batch may remove the folder, empty as it is, in between.
            with suppress(FileNotFoundError):
                return self._temporary.open("wb", buffering=0)

    @property
    def checksum(self) -> str:
        return checksum_of(self._hash)

    def write(self, batches: Iterable[pa.RecordBatch]) -> None:
        for batch in batches:
            self._writer.write_batch(batch)
            self._rows += batch.num_rows

    def finish(self) -> None:
        """Have it whole, under its name."""
        self._writer.close()
        self._file.close()
        self._temporary.rename(self._path)

    def abandon(self) -> None:
        """Leave nothing."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def _append(self, data: memoryview) -> None:
        with self._naming_full_disk():
            for start in range(0, len(data), _PIECE):
                piece = data[start : start + _PIECE]
                self._hash.update(piece)
                self.size += len(piece)
                while piece:
                    piece = piece[self._file.write(piece) :]

    @contextmanager
    def _naming_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as failed:
            if failed.errno not in _NO_SPACE:
                raise
            need = f"{self.size / _MIB:.1f} MiB so far"
            if self._rows:
                need += f", of about {self.size / _MIB * max(1.0, self._offsets / self._rows):.1f} MiB"
            free = shutil.disk_usage(self._path.parent).free if self._path.parent.exists() else 0
            raise DiskFullError(
                f"no space is left for the staged file {self._temporary}: it needs {need}, and {free / _MIB:.1f}"
                " MiB are"
                f" free ({failed.strerror}). Nothing of it is kept. Make room there, or lower"
                " max_bytes_per_batch."
            ) from failed


class _Sink:
    """What Arrow writes to."""

    def __init__(self, append: Callable[[memoryview], None]) -> None:
        self._append = append
        self.closed = False

    def write(self, data: bytes) -> int:
        """Write all of it."""
        view = memoryview(data).cast("B")
        self._append(view)
        return len(view)

    def flush(self) -> None:
        """There is no buffer."""

    def close(self) -> None:
        """Arrow closes what it writes to; the file is closed by whoever opened it."""


def checksum_of(content: xxh3_64) -> str:
    return f"xxh3_64:{content.hexdigest()}"
