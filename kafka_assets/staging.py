"""Staged slices: the decoded rows of a slice, between the fetch of a batch and its commit.

A small slice stays in memory where the same process commits it. Any other becomes the Arrow IPC file
`<staging>/<stream>/<batch>/<generation>-<name>`, which appears under that name only when it is whole. Its
checksum travels in the description the commit is given.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, Self

import pyarrow as pa

from kafka_assets.batch_lock import LOCK_NAME, BatchLock, batch_directory, holder, is_held
from kafka_assets.digest import DIGEST_FUNCTION, RangeDigests
from kafka_assets.errors import DiskFullError, KafkaAssetsError
from kafka_assets.evidence import RangeEvidence
from kafka_assets.offsets import OffsetRange, PlannedRange
from kafka_assets.records import RAW_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from kafka_assets.formats import Format

__all__ = [
    "BatchLock",
    "StagedDamagedError",
    "StagedRange",
    "StagedSlice",
    "Swept",
    "batch_directory",
    "discard",
    "discard_kept",
    "generation_of",
    "holder",
    "is_held",
    "open_staged",
    "stage",
    "sweep",
]

_TEMPORARY = ".tmp"
_MEMORY = "memory:"
_MIB = 1024**2
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


_kept: dict[str, pa.Table] = {}
"""Slices in this process's memory, by where their files would be."""


class StagedDamagedError(KafkaAssetsError):
    """A staged file is missing, short or altered; its slice has to be fetched again."""

    retryable = True


@dataclass(frozen=True, slots=True)
class StagedRange:
    """One range of a staged slice.

    Attributes:
        evidence: What was seen of it at the fetch.
        digest: The order-free digest of its rows; 0 without rows, None where it was not made.
        digest_function: What made the digest.
    """

    evidence: RangeEvidence
    digest: int | None
    digest_function: str


@dataclass(frozen=True, slots=True)
class StagedSlice:
    """A staged file and what is in it.

    Attributes:
        path: The file; `memory:` and where it would be, for a slice kept in this process.
        checksum: Of all the file's bytes, as `<function>:<hex>`.
        rows: Number of rows in it.
        size_bytes: Its size.
        ranges: The ranges it holds, as they were fetched.
    """

    path: str
    checksum: str
    rows: int
    size_bytes: int
    ranges: tuple[StagedRange, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON holds exactly: numbers that may pass 2**53 as text."""
        return {
            "path": self.path,
            "checksum": self.checksum,
            "rows": self.rows,
            "size_bytes": self.size_bytes,
            "ranges": [_range_to_dict(one) for one in self.ranges],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StagedSlice:
        """Return what `to_dict` was made of."""
        return cls(
            path=values["path"],
            checksum=values["checksum"],
            rows=values["rows"],
            size_bytes=values["size_bytes"],
            ranges=tuple(_range_from_dict(one) for one in values["ranges"]),
        )


class Reader(Protocol):
    """What is staged: `RangeReader`, or one that tells of ranges without records."""

    @property
    def ranges(self) -> tuple[PlannedRange, ...]:
        """What is read."""

    @property
    def evidence(self) -> tuple[RangeEvidence, ...]:
        """What was seen of each range, once the last batch was taken."""

    def __iter__(self) -> Iterator[pa.RecordBatch]: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


def stage(reader: Reader, fmt: Format, directory: Path, name: str, *, memory_bytes: int = 0) -> StagedSlice:
    """Read a slice to its end, decoded, with memory bounded whatever its size.

    A slice of at most `memory_bytes` stays in this process's memory, for a commit that follows in it: Kafka
    has the records all the same, and a process that dies takes nothing along that cannot be fetched again. A
    larger one goes into the file `<directory>/<name>`, with nothing left when this fails. The file is not
    synced: what a loss of power takes of it the checksum tells, and it is fetched again. Record batches have
    122,880 rows, or fewer where they reach 32 MiB; the last may be shorter.

    Raises:
        DiskFullError: No space is left.
        KafkaAssetsError: As the reader or the format does.
    """
    path = directory / name
    digests = RangeDigests([one.range for one in reader.ranges], [one.name for one in fmt.columns])
    kept: list[pa.RecordBatch] = []
    file: _StagedFile | None = None
    rows = size = 0
    try:
        with reader:
            for raw in reader:
                decoded = fmt.decode(raw)
                digests.add(decoded)
                rows += decoded.num_rows
                size += decoded.nbytes
                kept.append(decoded)
                if file is None and size > memory_bytes:
                    file = _StagedFile(path, decoded.schema, sum(one.range.size for one in reader.ranges))
                if file is not None:
                    file.write(kept)
                    kept.clear()
        if file is None and not memory_bytes:
            file = _StagedFile(path, _schema(fmt), 0)
        if file is not None:
            file.finish()
    except BaseException:
        if file is not None:
            file.abandon()
        raise
    finally:
        digests.close()
    ranges = tuple(
        StagedRange(evidence, total, DIGEST_FUNCTION)
        for evidence, total in zip(reader.evidence, digests.totals, strict=True)
    )
    if file is not None:
        return StagedSlice(str(path), file.checksum, rows, file.size, ranges)
    place = f"{_MEMORY}{path}"
    _kept[place] = pa.Table.from_batches(kept, kept[0].schema if kept else _schema(fmt))
    return StagedSlice(place, "", rows, size, ranges)


def _schema(fmt: Format) -> pa.Schema:
    return fmt.decode(pa.RecordBatch.from_pylist([], schema=RAW_SCHEMA)).schema


def discard(staged: StagedSlice) -> None:
    """Remove a slice that was committed, or that nobody will commit."""
    if staged.path.startswith(_MEMORY):
        _kept.pop(staged.path, None)
    else:
        Path(staged.path).unlink(missing_ok=True)


def discard_kept(staging: Path, stream: str, batch: str) -> None:
    """Give back the memory of all slices of a batch that this process keeps."""
    start = f"{_MEMORY}{batch_directory(staging, stream, batch)}{os.sep}"
    for place in [place for place in _kept if place.startswith(start)]:
        del _kept[place]


def open_staged(staged: StagedSlice) -> pa.Table:
    """Check a staged file, reading it once, and return its rows memory-mapped; or those kept in memory.

    Raises:
        StagedDamagedError: It is missing, short or altered, or was kept by a process that is gone.
    """
    if staged.path.startswith(_MEMORY):
        if staged.path not in _kept:
            raise StagedDamagedError(f"the slice {staged.path} was kept by a process that is gone")
        return _kept[staged.path]
    path = Path(staged.path)
    try:
        size = path.stat().st_size
        if size != staged.size_bytes:
            raise StagedDamagedError(
                f"staged file {path} has {size} bytes where {staged.size_bytes} were written"
            )
        with pa.memory_map(str(path)) as mapped:
            content = mapped.read_buffer()
    except OSError as failed:
        raise StagedDamagedError(
            f"staged file {path} cannot be read: {failed.strerror or failed}"
        ) from failed
    checksum = _checksum(zlib.crc32(content))
    if checksum != staged.checksum:
        raise StagedDamagedError(f"staged file {path} was altered: {checksum} is not {staged.checksum}")
    table = pa.ipc.open_file(content).read_all()
    if table.num_rows != staged.rows:
        raise StagedDamagedError(
            f"staged file {path} holds {table.num_rows} rows where {staged.rows} were written"
        )
    return table


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed."""

    files: int
    bytes: int


def sweep(
    staging: Path, *, keep: Callable[[str, str, Path], bool], older_than: float, now: float | None = None
) -> Swept:
    """Remove staged files that nobody needs, and the directories left empty.

    Nothing of a batch whose lock is held is touched.

    Args:
        staging: The staging area.
        keep: Given stream, batch and file: whether the file is still needed.
        older_than: Seconds since a file was last written to, below which it stays.
        now: Seconds since the epoch; None for the time it is.
    """
    files = size = 0
    before = (time.time() if now is None else now) - older_than
    for directory in sorted(staging.glob("*/*/")):
        stream, batch = directory.parent.name, directory.name
        with BatchLock(staging, stream, batch) as lock:
            if not lock.try_acquire():
                continue
            left = False
            for file in sorted(directory.iterdir()):
                if file.name == LOCK_NAME:
                    continue
                found = file.stat()
                if found.st_mtime > before or keep(stream, batch, file):
                    left = True
                    continue
                file.unlink()
                files += 1
                size += found.st_size
            if not left:
                # Whoever opens it before it goes finds, once it has the lock, that the file is another one.
                (directory / LOCK_NAME).unlink()
                _remove_empty(directory)
        _remove_empty(directory.parent)
    return Swept(files, size)


def generation_of(file: Path) -> int | None:
    """Return the generation of a batch that a staged file was fetched for; None if its name does not say."""
    head = file.name.partition("-")[0]
    return int(head) if head.isdecimal() else None


class _StagedFile:
    """A slice being written: counted and checked on the way, under its own name only once it is whole."""

    def __init__(self, path: Path, schema: pa.Schema, offsets: int) -> None:
        self._path = path
        self._temporary = path.with_name(f"{path.name}{_TEMPORARY}")
        self._offsets = offsets
        self._crc = 0
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
        return _checksum(self._crc)

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

    def _append(self, data: memoryview) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self.size += len(data)
        with self._naming_full_disk():
            while data:
                data = data[self._file.write(data) :]

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


def _checksum(crc: int) -> str:
    return f"crc32:{crc:08x}"


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()


def _range_to_dict(staged: StagedRange) -> dict[str, Any]:
    evidence = staged.evidence
    planned = evidence.planned
    return {
        "topic": planned.range.topic,
        "partition": planned.range.partition,
        "from": planned.range.from_offset,
        "until": planned.range.until_offset,
        "incarnation": planned.incarnation,
        "topic_id": planned.topic_id,
        "leader_epoch": planned.leader_epoch,
        "records": evidence.records,
        "gaps": evidence.gaps,
        "undeliverable": evidence.undeliverable,
        "lost": [[one.from_offset, one.until_offset] for one in evidence.lost],
        "bytes": evidence.bytes,
        "min_timestamp_ms": evidence.min_timestamp_ms,
        "max_timestamp_ms": evidence.max_timestamp_ms,
        "offset_sum": str(evidence.offset_sum),
        "end_proof": evidence.end_proof,
        "digest": None if staged.digest is None else str(staged.digest),
        "digest_function": staged.digest_function,
    }


def _range_from_dict(values: Mapping[str, Any]) -> StagedRange:
    topic, partition = values["topic"], values["partition"]
    planned = PlannedRange(
        OffsetRange(topic, partition, values["from"], values["until"]),
        incarnation=values["incarnation"],
        topic_id=values["topic_id"],
        leader_epoch=values["leader_epoch"],
    )
    evidence = RangeEvidence(
        planned=planned,
        records=values["records"],
        gaps=values["gaps"],
        undeliverable=values["undeliverable"],
        lost=tuple(OffsetRange(topic, partition, first, end) for first, end in values["lost"]),
        bytes=values["bytes"],
        min_timestamp_ms=values["min_timestamp_ms"],
        max_timestamp_ms=values["max_timestamp_ms"],
        offset_sum=int(values["offset_sum"]),
        end_proof=values["end_proof"],
    )
    digest = values["digest"]
    return StagedRange(evidence, None if digest is None else int(digest), values["digest_function"])
