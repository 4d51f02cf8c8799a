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
    moments = random.Random(20260101)  # noqa: S311  moments, not secrets
    name = topic(partitions=PARTITIONS)
    project.write({"orders": {"topics": [name], "max_records_per_batch": 20}})
    project.fork("version").join()
    count = 0
    for _ in range(KILLS):
        for partition in range(PARTITIONS):
            produce(name, support.values(6, first=count), partition)
        count += 6
        process = project.fork("ingest")
        process.join(moments.uniform(0.1, 1.5))
        process.kill()
        process.join()
        assert project("verify")["ok"]
    project("ingest")
    project.assert_each_once(name, partitions=PARTITIONS, count=count)
