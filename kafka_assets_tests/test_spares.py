from __future__ import annotations

from pathlib import Path

import pytest

from kafka_assets import staging
from kafka_assets.config import FormatConfig
from kafka_assets.fetch import RangeReader
from kafka_assets.formats import get_format
from kafka_assets.offsets import OffsetRange, PlannedRange
from kafka_assets.spares import Spares
from kafka_assets.staging import discard, open_staged, stage
from kafka_assets_tests.support.kafka import values

RAW = get_format(FormatConfig("raw", {}))


@pytest.fixture
def spares(tmp_path) -> Spares:
    return Spares(tmp_path / "orders" / "ahead-1")


def test_a_file_is_free_once_its_own_name_is_gone(spares, tmp_path):
    """A file that somebody may still read is never given away; one whose name was removed is, once."""
    file, other = tmp_path / "slice", tmp_path / "other"
    file.write_bytes(b"rows")
    spares.keep(file)
    assert not spares.take(other)
    file.unlink()
    assert spares.take(other)
    assert other.read_bytes() == b"rows"
    assert not spares.take(tmp_path / "third")


def test_without_a_directory_there_is_no_spare(spares, tmp_path):
    """Before the first file is kept, and after all were let go, a fresh file has to be made."""
    assert not spares.take(tmp_path / "slice")
    file = tmp_path / "slice"
    file.write_bytes(b"rows")
    spares.keep(file)
    spares.remove()
    file.unlink()
    assert not spares.take(tmp_path / "slice")


@pytest.mark.parametrize("second", [500, 40])
def test_a_slice_over_a_committed_one_is_all_its_own(
    bootstrap, topic, produce, spares, tmp_path, monkeypatch, second
):
    """A slice written over the file of a committed one, longer or shorter, comes back as it was staged."""
    monkeypatch.setattr(staging, "spares", spares)
    name = topic()
    produce(name, values(600), 0)

    def staged(low: int, high: int) -> staging.StagedSlice:
        planned = PlannedRange(OffsetRange(name, 0, low, high), incarnation=0, topic_id=None, leader_epoch=0)
        reader = RangeReader({"bootstrap.servers": bootstrap}, [planned], stall_timeout=20)
        return stage(reader, RAW, tmp_path / "orders" / f"batch{low}", "0-ahead-0")

    first = staged(0, 100)
    inode = Path(first.path).stat().st_ino
    discard(first)
    again = staged(100, 100 + second)
    assert Path(again.path).stat().st_ino == inode
    offsets = open_staged(again)["_kafka_offset"].to_pylist()
    assert sorted(offsets) == list(range(100, 100 + second))
