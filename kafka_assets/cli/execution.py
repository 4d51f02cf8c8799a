"""What a command that executes runs has to open; here alone, because it imports Dagster: half a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka_assets.orchestration.execution import RunExecutor, open_instance
from kafka_assets.orchestration.runtime import Runtime

if TYPE_CHECKING:
    import dagster as dg

    from kafka_assets.cli.session import Session


def execution_of(session: Session) -> tuple[Runtime, RunExecutor, dg.DagsterInstance]:
    """Open the Dagster instance of a call, and what executes the batches of its streams file there."""
    runtime, instance = Runtime(session.config), open_instance(session.config.path.parent)
    return runtime, RunExecutor(runtime, instance), instance
