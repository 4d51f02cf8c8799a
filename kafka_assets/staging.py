"""Staged slices: the decoded rows of a slice, between the fetch of a batch and its commit.

A small slice stays in memory where the same process commits it. Any other becomes the Arrow IPC file
`<staging>/<stream>/<batch>/<generation>-<name>`, which appears under that name only when it is whole. Its
checksum travels in the description the commit is given. Records that do not decode are staged beside the rows
of their slice in the same way, under the name `<generation>-<name>-bad`, if there are any.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, Self
from weakref import WeakSet

import pyarrow as pa
from xxhash import xxh3_64

from kafka_assets.batch_lock import LOCK_NAME, BatchLock, batch_directory, holder, is_held
from kafka_assets.digest import DIGEST_FUNCTION, RangeDigests
from kafka_assets.errors import DiskFullError, KafkaAssetsError
from kafka_assets.evidence import RangeEvidence
from kafka_assets.formats.bad import decode
from kafka_assets.offsets import OffsetRange, PlannedRange
from kafka_assets.records import RAW_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from kafka_assets.config.values import OnBadRecord
    from kafka_assets.formats import Format
    from kafka_assets.spares import Spares

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
    "in_file",
    "is_held",
    "is_kept",
    "let_go_of_pages",
    "open_staged",
    "stage",
    "sweep",
]

_TEMPORARY = ".tmp"
_BAD = "-bad"
_MEMORY = "memory:"
_MIB = 1024**2
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


_kept: dict[str, pa.Table] = {}
"""Slices in this process's memory, by where their files would be."""

_filed: dict[str, StagedSlice] = {}
"""Those of them that were put into their files since, and are mapped from there."""

_mapped: WeakSet[mmap.mmap] = WeakSet()
"""The staged files that this process has opened."""

spares: Spares | None = None
"""Of a process that stages one file after the other: those it may write over."""


class StagedDamagedError(KafkaAssetsError):
    """A staged file is missing, short or altered; its slice has to be fetched again."""

    retryable = True


@dataclass(frozen=True, slots=True)
class StagedRange:
    """One range of a staged slice.

    Attributes:
        evidence: What was seen of it at the fetch.
        digest: The order-free digest of its rows and bad records; 0 without any, None where it was not made.
        digest_function: What made the digest.
        quarantined: How many of its records are bad.
    """

    evidence: RangeEvidence
    digest: int | None
    digest_function: str
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class StagedSlice:
    """A staged file and what is in it.

    Attributes:
        path: The file; `memory:` and where it would be, for a slice kept in this process.
        checksum: Of all the file's bytes, as `<function>:<hex>`.
        rows: Number of rows in it.
        size_bytes: Its size.
        ranges: The ranges it holds, as they were fetched; none of bad records.
        bad: The bad records of these ranges, in a file of their own; None without any.
    """

    path: str
    checksum: str
    rows: int
    size_bytes: int
    ranges: tuple[StagedRange, ...]
    bad: StagedSlice | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON holds exactly: numbers that may pass 2**53 as text."""
        return {
            "path": self.path,
            "checksum": self.checksum,
            "rows": self.rows,
            "size_bytes": self.size_bytes,
            "ranges": [_range_to_dict(one) for one in self.ranges],
            "bad": None if self.bad is None else self.bad.to_dict(),
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
            bad=None if values["bad"] is None else cls.from_dict(values["bad"]),
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


def stage(
    reader: Reader,
    fmt: Format,
    directory: Path,
    name: str,
    *,
    memory_bytes: int = 0,
    on_bad_record: OnBadRecord = "fail",
) -> StagedSlice:
    """Read a slice to its end, decoded, with memory bounded whatever its size.

    A slice of at most `memory_bytes` stays in this process's memory, for a commit that follows in it: Kafka
    has the records all the same, and a process that dies takes nothing along that cannot be fetched again. A
    larger one goes into the file `<directory>/<name>`, with nothing left when this fails. The file is not
    synced: what a loss of power takes of it the checksum tells, and it is fetched again. Record batches have
    122,880 rows, or fewer where they reach 32 MiB; the last may be shorter.

    Raises:
        DiskFullError: No space is left.
        BadRecordError: A record does not decode, and bad records are not to be set aside.
        KafkaAssetsError: As the reader does.
    """
    path = directory / name
    digests = RangeDigests([one.range for one in reader.ranges], [one.name for one in fmt.columns])
    offsets = sum(one.range.size for one in reader.ranges)
    rows, bad = _Part(path, offsets), _Part(path.with_name(f"{name}{_BAD}"), offsets)
    try:
        with reader:
            for raw in reader:
                decoded = decode(fmt, raw, on_bad_record)
                if decoded.bad is not None:
                    digests.add_bad(decoded.bad)
                    bad.add(decoded.bad, memory_bytes - rows.size)
                digests.add(decoded.rows)
                rows.add(decoded.rows, memory_bytes - bad.size)
        if not rows.added:
            rows.add(_nothing(fmt), memory_bytes - 1)
        counted = zip(reader.evidence, digests.totals, digests.bad, strict=True)
        ranges = tuple(
            StagedRange(evidence, total, DIGEST_FUNCTION, count) for evidence, total, count in counted
        )
        return rows.finish(ranges, bad.finish() if bad.added else None)
    except BaseException:
        rows.abandon()
        bad.abandon()
        raise
    finally:
        digests.close()


def _nothing(fmt: Format) -> pa.RecordBatch:
    return fmt.decode(pa.RecordBatch.from_pylist([], schema=RAW_SCHEMA)).rows


def discard(staged: StagedSlice) -> None:
    """Remove a slice that was committed, or that nobody will commit."""
    if staged.bad is not None:
        discard(staged.bad)
    if staged.path.startswith(_MEMORY):
        _kept.pop(staged.path, None)
        filed = _filed.pop(staged.path, None)
        if filed is not None:
            discard(filed)
    else:
        Path(staged.path).unlink(missing_ok=True)


def discard_kept(staging: Path, stream: str, batch: str) -> None:
    """Give back the memory of all slices of a batch that this process keeps."""
    start = f"{_MEMORY}{batch_directory(staging, stream, batch)}{os.sep}"
    for place in [place for place in _kept if place.startswith(start)]:
        del _kept[place]
        _filed.pop(place, None)


def is_kept(staged: StagedSlice) -> bool:
    """Whether any of a slice was kept in this process's memory, rather than put into files."""
    return staged.path.startswith(_MEMORY) or (staged.bad is not None and is_kept(staged.bad))


def in_file(staged: StagedSlice) -> StagedSlice:
    """Put what is kept of a slice in memory into its file, and describe that; whoever opens the slice gets it mapped.

    Raises:
        DiskFullError: No space is left; it is kept as it was.
    """
    bad = None if staged.bad is None else in_file(staged.bad)
    if staged.path in _kept and staged.path not in _filed:
        table = _kept[staged.path]
        path = Path(staged.path.removeprefix(_MEMORY))
        file = _StagedFile(path, table.schema, table.num_rows)
        try:
            file.write(table.to_batches())
            file.finish()
        except BaseException:
            file.abandon()
            raise
        filed = replace(staged, path=str(path), checksum=file.checksum, size_bytes=file.size, bad=None)
        _kept[staged.path] = open_staged(filed)
        _filed[staged.path] = filed
    return replace(_filed.get(staged.path, staged), bad=bad)


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
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as failed:
        raise StagedDamagedError(
            f"staged file {path} cannot be read: {failed.strerror or failed}"
        ) from failed
    _mapped.add(mapped)
    content = pa.py_buffer(mapped)
    checksum = _checksum(xxh3_64(content))
    let_go_of_pages()
    if checksum != staged.checksum:
        raise StagedDamagedError(f"staged file {path} was altered: {checksum} is not {staged.checksum}")
    table = pa.ipc.open_file(content).read_all()
    if table.num_rows != staged.rows:
        raise StagedDamagedError(
            f"staged file {path} holds {table.num_rows} rows where {staged.rows} were written"
        )
    return table


def let_go_of_pages() -> None:
    """Give back the memory of what was read of staged files; what is read again comes from the files again."""
    for one in list(_mapped):
        one.madvise(mmap.MADV_DONTNEED)


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


class _Part:
    """The rows of a slice, or its bad records, on their way into memory or a file."""

    def __init__(self, path: Path, offsets: int) -> None:
        self._path = path
        self._offsets = offsets
        self._kept: list[pa.RecordBatch] = []
        self._file: _StagedFile | None = None
        self._rows = 0
        self.size = 0
        self.added = False

    def add(self, batch: pa.RecordBatch, memory_bytes: int) -> None:
        """Take a batch; with the first that passes the memory there is, all goes into the file."""
        self.added = True
        self._rows += batch.num_rows
        self.size += batch.nbytes
        self._kept.append(batch)
        if self._file is None and self.size > memory_bytes:
            self._file = _StagedFile(self._path, batch.schema, self._offsets)
        if self._file is not None:
            self._file.write(self._kept)
            self._kept.clear()

    def finish(self, ranges: tuple[StagedRange, ...] = (), bad: StagedSlice | None = None) -> StagedSlice:
        """Have it whole, and describe it."""
        if self._file is not None:
            self._file.finish()
            return StagedSlice(str(self._path), self._file.checksum, self._rows, self._file.size, ranges, bad)
        place = f"{_MEMORY}{self._path}"
        _kept[place] = pa.Table.from_batches(self._kept)
        return StagedSlice(place, "", self._rows, self.size, ranges, bad)

    def abandon(self) -> None:
        """Leave nothing."""
        if self._file is not None:
            self._file.abandon()


class _StagedFile:
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
                over = spares is not None and spares.take(self._temporary)
                return self._temporary.open("r+b" if over else "wb", buffering=0)

    @property
    def checksum(self) -> str:
        return _checksum(self._hash)

    def write(self, batches: Iterable[pa.RecordBatch]) -> None:
        for batch in batches:
            self._writer.write_batch(batch)
            self._rows += batch.num_rows

    def finish(self) -> None:
        """Have it whole, under its name."""
        self._writer.close()
        self._file.truncate()
        self._file.close()
        if spares is not None:
            spares.keep(self._temporary)
        self._temporary.rename(self._path)

    def abandon(self) -> None:
        """Leave nothing."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def _append(self, data: memoryview) -> None:
        self._hash.update(data)
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


def _checksum(content: xxh3_64) -> str:
    return f"xxh3_64:{content.hexdigest()}"


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
        "identified": evidence.identified,
        "digest": None if staged.digest is None else str(staged.digest),
        "digest_function": staged.digest_function,
        "quarantined": staged.quarantined,
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
        identified=values["identified"],
    )
    digest = values["digest"]
    return StagedRange(
        evidence, None if digest is None else int(digest), values["digest_function"], values["quarantined"]
    )
