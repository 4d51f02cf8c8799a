"""Records that come in all the while, in transactions of which some are aborted, and what must be in the table."""

from __future__ import annotations

import random
import threading
import time
import uuid
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException, Producer

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import KafkaError, Message

_MOST_RECORDS = 60
_ABORTED = 1 / 6
_SECONDS = 30
_PATIENCE_SECONDS = 300
"""For a broker on a machine that is all but overrun."""


class Feed(threading.Thread):
    """Produces into a topic until stopped.

    Attributes:
        committed: What a reader must get: partition and offset of each record, and its value.
    """

    def __init__(self, bootstrap: str, topic: str, *, partitions: int, rate: int) -> None:
        super().__init__(name="feed", daemon=True)
        self.committed: dict[tuple[int, int], bytes] = {}
        self.failed: Exception | None = None
        self._topic = topic
        self._partitions = partitions
        self._rate = rate
        self._choice = random.Random(rate)  # noqa: S311  records, not secrets
        self._stopped = threading.Event()
        self._number = 0
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "transactional.id": f"storm-{uuid.uuid4()}",
                "transaction.timeout.ms": 2000 * _PATIENCE_SECONDS,
                "linger.ms": 1,
                "log_level": 0,
            }
        )
        self._until_done(self._producer.init_transactions)

    def run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._stopped.wait(self.transact() / self._rate)
        except Exception as error:  # noqa: BLE001  told by `stop`
            self.failed = error

    def transact(self) -> int:
        """Produce one transaction; return its records."""
        count = self._choice.randrange(1, _MOST_RECORDS)
        placed: dict[tuple[int, int], bytes] = {}

        def delivered(error: KafkaError | None, message: Message) -> None:
            assert error is None, str(error)
            place = (message.partition(), message.offset())
            placed[place] = message.value()  # type: ignore[index, assignment]  # both are there once delivered

        self._producer.begin_transaction()
        for _ in range(count):
            self._number += 1
            self._producer.produce(
                self._topic,
                b"%012d" % self._number,
                partition=self._choice.randrange(self._partitions),
                on_delivery=delivered,
            )
        left = self._producer.flush(_PATIENCE_SECONDS)
        assert left == 0, f"{left} records were not delivered"
        if self._choice.random() < _ABORTED:
            self._until_done(self._producer.abort_transaction)
        else:
            self._until_done(self._producer.commit_transaction)
            self.committed |= placed
        return count

    def _until_done(self, act: Callable[[float], None]) -> None:
        """Call again what ran out of time, as the client asks for."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return act(_SECONDS)
            except KafkaException as failed:
                if not failed.args[0].retriable() or time.monotonic() > deadline:
                    raise

    def check(self) -> None:
        """Raise what has ended it."""
        if self.failed is not None:
            raise self.failed

    def stop(self) -> None:
        """End with the transaction at hand."""
        self._stopped.set()
        self.join()
        self._producer.close()
        self.check()
