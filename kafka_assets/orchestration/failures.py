"""How an error of a batch reaches the ledger and Dagster."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg

from kafka_assets import ledger
from kafka_assets.errors import BatchUnknownError, KafkaAssetsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka_assets.warehouse import Warehouse

logger = logging.getLogger(__name__)

RETRIES = 2
RETRY_SECONDS = 5
POLICY_EXIT_CODE = 3


@contextmanager
def reported(context: dg.OpExecutionContext, warehouse: Warehouse, stream: str, batch: str) -> Iterator[None]:
    """Write an error into the ledger as the batch's last, and turn it into what Dagster does next.

    A locked file or an unreachable broker is tried again twice within the run; nothing else is, since only
    the sensor counts attempts. A stop by policy blocks the batch until a person acts.
    """
    try:
        yield
    except KafkaAssetsError as error:
        if error.retryable and context.retry_number < RETRIES:
            raise dg.RetryRequested(
                max_retries=RETRIES, seconds_to_wait=RETRY_SECONDS * (context.retry_number + 1)
            ) from error
        _note(warehouse, stream, batch, f"{error.code}: {error.message}", error)
        raise dg.Failure(
            description=f"{error.code}: {error.message}",
            metadata={"code": error.code, "stream": stream, "batch": batch},
            allow_retries=False,
        ) from error
    except Exception as error:
        _note(warehouse, stream, batch, f"RUN_FAILED: {type(error).__name__}: {error}", error)
        raise


def _note(warehouse: Warehouse, stream: str, batch: str, text: str, error: Exception) -> None:
    if isinstance(error, BatchUnknownError):
        return
    blocked = isinstance(error, KafkaAssetsError) and error.exit_code == POLICY_EXIT_CODE
    try:
        with warehouse.writing() as connection:
            ledger.record_failure(connection, stream, batch, error=text, blocked=blocked)
    except KafkaAssetsError as noting:
        # The run fails with its own error all the same; the next attempt writes its own.
        logger.warning("the error of batch %s could not be written into the ledger: %s", batch, noting)
