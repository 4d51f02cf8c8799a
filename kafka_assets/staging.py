"""Staged slices: the decoded rows of a slice, between the fetch of a batch and its commit.

A small slice stays in memory where the same process commits it. Any other becomes the Arrow IPC file
`<staging>/<stream>/<batch>/<generation>-<name>`, which appears under that name only when it is whole. Its
checksum travels in the description the commit is given. Records that do not decode are staged beside the rows
of their slice in the same way, under the name `<generation>-<name>-bad`, if there are any.
"""

from __future__ import annotations

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self
from weakref import WeakSet

import pyarrow as pa
from xxhash import xxh3_64

from kafka_assets.batch_lock import LOCK_NAME, BatchLock, batch_directory
from kafka_assets.digest import DIGEST_FUNCTION, RangeDigests
from kafka_assets.errors import KafkaAssetsError
from kafka_assets.formats.bad import decode
from kafka_assets.records import RAW_SCHEMA
from kafka_assets.staged import StagedRange, StagedSlice
from kafka_assets.staged_file import StagedFile, checksum_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from kafka_assets.config.values import OnBadRecord
    from kafka_assets.evidence import RangeEvidence
    from kafka_assets.formats import Format
    from kafka_assets.offsets import PlannedRange

_BAD = "-bad"
_MEMORY = "memory:"

_kept: dict[str, pa.Table] = {}
"""Slices in this process's memory, by where their files would be."""

_filed: dict[str, StagedSlice] = {}
"""Those of them that were put into their files since, and are mapped from there."""

_mapped: WeakSet[mmap.mmap] = WeakSet()
"""The staged files that this process has opened."""


class StagedDamagedError(KafkaAssetsError):
    """A staged file is missing, short or altered; its slice has to be fetched again."""

    retryable = True


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

    def add(raw: pa.RecordBatch) -> None:
        decoded = decode(fmt, raw, on_bad_record)
        if decoded.bad is not None:
            digests.add_bad(decoded.bad)
            bad.add(decoded.bad, memory_bytes - rows.size)
        digests.add(decoded.rows)
        rows.add(decoded.rows, memory_bytes - bad.size)

    try:
        with reader:
            _for_each_beside(reader, add)
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


def _for_each_beside(batches: Iterable[pa.RecordBatch], work: Callable[[pa.RecordBatch], None]) -> None:
    """Do the work on one batch after the other, on each while the next is read.

    Most of it, digest, checksum and file, needs no lock of the interpreter, which reading needs nearly all the time.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="stage") as beside:
        before: Future[None] | None = None
        for batch in batches:
            if before is not None:
                before.result()
            before = beside.submit(work, batch)
        if before is not None:
            before.result()


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
        file = StagedFile(path, table.schema, table.num_rows)
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
    checksum = checksum_of(xxh3_64(content))
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
        self._file: StagedFile | None = None
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
            self._file = StagedFile(self._path, batch.schema, self._offsets)
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


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()
