"""Staged files: the decoded rows of a slice on disk, between the fetch of a batch and its commit.

`<staging>/<stream>/<batch>/<generation>-<name>` is an Arrow IPC file of one slice of a batch. It appears
under that name only when it is whole, and its checksum travels in the description the commit is given.
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
from typing import IO, TYPE_CHECKING, Any, Self

import pyarrow as pa

from kafka_assets.batch_lock import LOCK_NAME, BatchLock, batch_directory, holder, is_held
from kafka_assets.digest import DIGEST_FUNCTION, RangeDigests
from kafka_assets.errors import DiskFullError, KafkaAssetsError
from kafka_assets.evidence import RangeEvidence
from kafka_assets.offsets import OffsetRange, PlannedRange
from kafka_assets.records import RAW_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kafka_assets.fetch import RangeReader
    from kafka_assets.formats import Format

__all__ = [
    "BatchLock",
    "StagedDamagedError",
    "StagedRange",
    "StagedSlice",
    "Swept",
    "batch_directory",
    "generation_of",
    "holder",
    "is_held",
    "open_staged",
    "stage",
    "sweep",
]

_TEMPORARY = ".tmp"
_MIB = 1024**2
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


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
        path: The file.
        checksum: Of all its bytes, as `<function>:<hex>`.
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


def stage(reader: RangeReader, fmt: Format, directory: Path, name: str) -> StagedSlice:
    """Read a slice to its end into `<directory>/<name>`, decoded, with memory bounded whatever its size.

    The file has record batches of 122,880 rows, or fewer where they reach 32 MiB; the last may be shorter.
    It is on disk when this returns, and nothing is left when it fails.

    Raises:
        DiskFullError: No space is left.
        KafkaAssetsError: As the reader or the format does.
    """
    path = directory / name
    temporary = directory / f"{name}{_TEMPORARY}"
    digests = RangeDigests([one.range for one in reader.ranges], [one.name for one in fmt.columns])
    sink = _Sink(temporary, sum(one.range.size for one in reader.ranges))
    try:
        with reader, sink:
            schema = fmt.decode(pa.RecordBatch.from_pylist([], schema=RAW_SCHEMA)).schema
            with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), schema) as writer:
                for raw in reader:
                    decoded = fmt.decode(raw)
                    digests.add(decoded)
                    writer.write_batch(decoded)
                    sink.rows += decoded.num_rows
            sink.sync()
        temporary.rename(path)
        _sync_directory(directory)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        digests.close()
    return StagedSlice(
        path=str(path),
        checksum=sink.checksum,
        rows=sink.rows,
        size_bytes=sink.size,
        ranges=tuple(
            StagedRange(evidence, total, DIGEST_FUNCTION)
            for evidence, total in zip(reader.evidence, digests.totals, strict=True)
        ),
    )


def open_staged(staged: StagedSlice) -> pa.Table:
    """Check a staged file, reading it once, and return its rows memory-mapped.

    Raises:
        StagedDamagedError: It is missing, short or altered.
    """
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


class _Sink:
    """The file being written: counts and checks its bytes on the way, and says when the disk is full."""

    def __init__(self, path: Path, offsets: int) -> None:
        self._path = path
        self._offsets = offsets
        self._file: IO[bytes] | None = None
        self._crc = 0
        self.size = 0
        self.rows = 0
        self.closed = False

    def __enter__(self) -> Self:
        with self._naming_full_disk():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def checksum(self) -> str:
        return _checksum(self._crc)

    def write(self, data: bytes) -> int:
        """Write all of it."""
        view = memoryview(data).cast("B")
        self._crc = zlib.crc32(view, self._crc)
        self.size += len(view)
        with self._naming_full_disk():
            while view:
                view = view[self._opened.write(view) :]
        return len(data)

    def flush(self) -> None:
        """There is no buffer."""

    def close(self) -> None:
        """Arrow closes what it writes to; the file stays open to be synced."""

    def sync(self) -> None:
        """Have it on disk."""
        with self._naming_full_disk():
            os.fsync(self._opened.fileno())

    @property
    def _opened(self) -> IO[bytes]:
        if self._file is None:
            raise ValueError("the sink is not open")
        return self._file

    @contextmanager
    def _naming_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as failed:
            if failed.errno not in _NO_SPACE:
                raise
            need = f"{self.size / _MIB:.1f} MiB so far"
            if self.rows:
                need += f", of about {self.size / _MIB * max(1.0, self._offsets / self.rows):.1f} MiB"
            free = shutil.disk_usage(self._path.parent).free if self._path.parent.exists() else 0
            raise DiskFullError(
                f"no space is left for the staged file {self._path}: it needs {need}, and {free / _MIB:.1f}"
                " MiB are"
                f" free ({failed.strerror}). Nothing of it is kept. Make room there, or lower"
                " max_bytes_per_batch."
            ) from failed


def _checksum(crc: int) -> str:
    return f"crc32:{crc:08x}"


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
