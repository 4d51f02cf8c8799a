"""How a code server starts its run workers: forked from a process that has imported what they need."""

from __future__ import annotations

import sys
from multiprocessing import forkserver, get_context

_PRELOADED = (
    "dagster._grpc.impl",
    "dagster._core.storage.sqlite_storage",
    "kafka_assets.orchestration.factory",
    "kafka_assets.batches",
)
"""Libraries alone: each worker reads the streams file for itself, as it is when its run begins."""


def fork_run_workers() -> None:
    """Have this process, if it is Dagster's code server, fork its run workers instead of spawning them.

    A spawned one imports Dagster, DuckDB and the Kafka client first, which takes longer than to run a small batch.
    The process they are forked from does nothing else, so there is no lock that a worker could inherit, and it ends
    with the code server. Dagster has no setting for it; the dependency is held to one minor version for that.
    Elsewhere than on Linux the system's own libraries may not outlive a fork, and workers are spawned as ever.
    """
    server = sys.modules.get("dagster._grpc.server")
    if server is None or sys.platform != "linux":
        return
    context = get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    vars(server)["DagsterApiServer"]._mp_ctx = property(lambda _: context)  # noqa: SLF001  see above
    # Now, and not when the first run waits for it.
    forkserver.ensure_running()
