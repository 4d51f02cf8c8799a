from __future__ import annotations

import random
from typing import TYPE_CHECKING

from kafka_assets_tests.support import kafka as support

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka_assets_tests.cli.support import Project
    from kafka_assets_tests.conftest import TopicFactory

KILLS = 10
PARTITIONS = 2


def test_killed_at_any_moment_every_record_is_there_once(
    project: Project, topic: TopicFactory, produce: Callable[..., list[support.Place]]
) -> None:
    """`ingest` killed ten times by SIGKILL and then let through: each record is there once, the proof holds."""
    moments = random.Random(20260101)
    name = topic(partitions=PARTITIONS)
    project.write({"orders": {"topics": [name], "max_records_per_batch": 4}})
    count = 0
    for _ in range(KILLS):
        for partition in range(PARTITIONS):
            produce(name, support.values(6, first=count), partition)
        count += 6
        process = project.fork("ingest")
        process.join(moments.uniform(0.05, 2.0))
        process.kill()
        process.join()
        proof = project("verify")
        assert proof["ok"], proof
    project("ingest")
    project.assert_each_once(name, partitions=PARTITIONS, count=count)
