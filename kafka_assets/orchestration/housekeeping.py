"""What is cleared away once nobody needs it: staged files of runs that did not come to remove them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka_assets import ledger
from kafka_assets.staging import Swept, generation_of, sweep

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from kafka_assets.warehouse import Warehouse

OVERTAKEN_SECONDS = 600.0
"""A run that another one overtook may still be about to open its files; without them it would fetch again."""

KEPT_SECONDS = 86_400.0


def sweep_stream(warehouse: Warehouse, stream: str, *, now: datetime, timeout: float | None = None) -> Swept:
    """Remove staged files of a stream's batches that were committed since, and those a day old.

    Nothing of a batch whose lock is held is touched.

    Args:
        warehouse: Whose staging area is swept.
        stream: The stream.
        now: The time.
        timeout: Seconds to wait for the file; `lock_timeout` by default.
    """
    batches = [folder.name for folder in (warehouse.staging / stream).glob("*/")]
    if not batches:
        return Swept(0, 0)
    with warehouse.reading(timeout) as connection:
        rows = [ledger.read_batch(connection, stream, batch) for batch in batches]
    generations = {row.batch: row.generation for row in rows if row is not None}

    def keep(owner: str, batch: str, file: Path) -> bool:
        if owner != stream:
            return True
        fetched_for = generation_of(file)
        overtaken = fetched_for is not None and fetched_for < generations.get(batch, 0)
        return not overtaken and file.stat().st_mtime > now.timestamp() - KEPT_SECONDS

    return sweep(warehouse.staging, keep=keep, older_than=OVERTAKEN_SECONDS, now=now.timestamp())
