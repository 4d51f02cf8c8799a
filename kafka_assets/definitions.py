"""What `dagster dev` loads: the streams of the streams file, each run in one process.

The in-process executor starts a step in 0.05 s where the default one takes 2 s.
"""

import dagster as dg

from kafka_assets.orchestration.factory import build_definitions
from kafka_assets.orchestration.workers import fork_run_workers

fork_run_workers()

defs = dg.Definitions.merge(build_definitions(), dg.Definitions(executor=dg.in_process_executor))
