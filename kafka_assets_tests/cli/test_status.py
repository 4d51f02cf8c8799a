from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from kafka_assets.dev.topics import delete_topic
from kafka_assets_tests.cli.support import Project, error_of
from kafka_assets_tests.support import kafka as support

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka_assets_tests.conftest import TopicFactory

    Produce = Callable[..., list[support.Place]]


def test_status_before_and_after(project: Project, topic: TopicFactory, produce: Produce) -> None:
    """`status` tells where each topic-partition stands, from before the first plan on."""
    name = topic(partitions=2)
    produce(name, support.values(5), 0)
    project.write({"orders": {"topics": [name], "table": "raw.orders"}})
    before = project("status")["streams"]["orders"]
    assert before["table"] == "raw.orders"
    assert before["batches"] == {"planned": 0, "committed": 0, "failed": 0, "blocked": 0}
    assert [
        (row["partition"], row["end"], row["planned_until"], row["lag"]) for row in before["partitions"]
    ] == [
        (0, 5, None, 5),
        (1, 0, None, 0),
    ]
    project("ingest")
    produce(name, support.values(3), 0)
    after = project("status")["streams"]["orders"]
    assert after["batches"]["committed"] == 1
    first, second = after["partitions"]
    assert {key: first[key] for key in first if key != "topic_id"} == {
        "topic": name,
        "incarnation": 0,
        "partition": 0,
        "log_start": 0,
        "end": 8,
        "high_watermark": 8,
        "start": 0,
        "planned_until": 5,
        "committed_until": 5,
        "hole": 0,
        "unstable": 0,
        "lag": 3,
    }
    assert (second["planned_until"], second["lag"]) == (0, 0)
    text = project.text("status")
    assert "orders into raw.orders" in text
    assert "1 committed" in text


def test_status_does_not_mix_a_topic_with_its_successor(
    project: Project, bootstrap: str, topic: TopicFactory, produce: Produce
) -> None:
    """The log of a topic that was created again has a row of its own, with the next incarnation's number."""
    name = topic()
    produce(name, support.values(5))
    project.write({"orders": {"topics": [name]}})
    project("ingest")
    delete_topic(bootstrap, name)
    topic(name=name)
    produce(name, support.values(2))
    old, new = project("status")["streams"]["orders"]["partitions"]
    assert (old["incarnation"], old["committed_until"], old["end"], old["lag"]) == (0, 5, None, None)
    assert (new["incarnation"], new["committed_until"], new["end"], new["lag"]) == (1, None, 2, 2)
    assert old["topic_id"] != new["topic_id"]
    assert error_of(project("plan", exit_code=3), "orders")[0] == "TOPIC_RECREATED"
    assert error_of(project("ingest", exit_code=3), "orders")[0] == "TOPIC_RECREATED"


def test_looking_does_not_wait_for_dagster(project: Project, topic: TopicFactory) -> None:
    """`plan`, `status`, `verify` and `version` never import Dagster, which takes longer than they do."""
    project.write({"orders": {"topics": [topic()]}})
    program = (
        "import io, sys; from kafka_assets.cli.app import run\n"
        "codes = [run([name, '--json'], io.StringIO()) for name in ('plan', 'status', 'verify', 'version')]\n"
        "print(codes, 'dagster' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project.folder, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[0, 0, 0, 0] False\n"
