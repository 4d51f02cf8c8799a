"""The process that fetches ahead, started beside the import of Dagster, which takes longer than its start."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from kafka_assets.errors import KafkaAssetsError
from kafka_assets.fetcher import Fetcher
from kafka_assets.log import KafkaLog
from kafka_assets.planner import outstanding, survey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka_assets.cli.session import Session
    from kafka_assets.config import StreamConfig

_BROKER_SECONDS = 5.0
"""An answer that takes longer gives no head start."""


@contextmanager
def fetcher_for(session: Session, first: StreamConfig) -> Iterator[Fetcher]:
    """Give a fetcher whose process a thread starts meanwhile, if the stream to drain first has enough to fetch."""
    fetcher = Fetcher(session.config.path)

    def look() -> None:
        # What goes wrong goes wrong again when the stream is drained, which tells it.
        with (
            suppress(KafkaAssetsError),
            KafkaLog(first.kafka.resolve(), timeout=_BROKER_SECONDS) as log,
        ):
            # A warehouse that others hold is not waited for: the drain would wait for this thread.
            fetcher.start_for(outstanding(survey(first, session.warehouse, log, timeout=0.0)))

    thread = threading.Thread(target=look, name="head-start")
    thread.start()
    try:
        yield fetcher
    finally:
        fetcher.close()
        thread.join()
