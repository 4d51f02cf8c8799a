"""For assets computed per batch from a stream's table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka_assets.batches import read_batch
from kafka_assets.config import Config, load_config
from kafka_assets.orchestration.assets import batches_def_of
from kafka_assets.orchestration.naming import names_of
from kafka_assets.warehouse import Warehouse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import dagster as dg

    from kafka_assets.offsets import OffsetRange


def batches_def(
    stream: str, *, config: Config | str | PathLike[str] | None = None, prefix: Sequence[str] = ()
) -> dg.DynamicPartitionsDefinition:
    """Return the partitions definition whose keys are the batches of a stream.

    Args:
        stream: The stream's name.
        config: The streams file, as for `build_definitions`.
        prefix: The asset key prefix that `build_definitions` was given.

    Raises:
        StreamUnknownError: The streams file has no such stream.
    """
    return batches_def_of(names_of(_loaded(config).stream(stream), tuple(prefix)))


def offset_ranges(
    stream: str, batch: str, *, config: Config | str | PathLike[str] | None = None
) -> tuple[OffsetRange, ...]:
    """Return the offset ranges of a batch, from the ledger.

    Args:
        stream: The stream's name.
        batch: The batch's key: the partition key of a run.
        config: The streams file, as for `build_definitions`.

    Raises:
        StreamUnknownError: The streams file has no such stream.
        BatchUnknownError: The ledger has no such batch.
        WarehouseLockedError: The file was held by another process for longer than `lock_timeout`.
    """
    loaded = _loaded(config)
    found = read_batch(loaded.stream(stream), Warehouse.of(loaded.warehouse), batch)
    return tuple(planned.range for planned in found.ranges)


def _loaded(config: Config | str | PathLike[str] | None) -> Config:
    return config if isinstance(config, Config) else load_config(config)
