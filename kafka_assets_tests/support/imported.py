"""What a process has imported when it comes to this module, which itself imports nothing."""

import sys

HEAVY = {"dagster", "duckdb", "pyarrow", "confluent_kafka", "kafka_assets.definitions"}
FOUND = sorted(HEAVY & set(sys.modules))


def tell(queue):
    queue.put(FOUND)
