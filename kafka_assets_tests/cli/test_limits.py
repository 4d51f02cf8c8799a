from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

import dagster as dg

from kafka_assets_tests.support import kafka as support

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from kafka_assets_tests.cli.support import Project
    from kafka_assets_tests.conftest import TopicFactory

    Produce = Callable[..., list[support.Place]]


def sizes_of_batches(project: Project) -> list[int]:
    """The offsets of each batch, in the order of their keys."""
    found = project.query(
        "SELECT sum(until_offset - from_offset)::BIGINT FROM kafka_assets.offset_ranges GROUP BY batch ORDER BY batch"
    )
    return [size for (size,) in found]


def test_backpressure_slows_ingest_down_and_says_so(
    project: Project, topic: TopicFactory, produce: Produce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch an interval, as large as the rate allows; `ingest` says that it waits, and each run shows the rate."""
    name = topic(partitions=2)
    for partition, count in enumerate((4, 12)):
        produce(name, support.values(count), partition)
    terms = {"initial_rate": 1, "min_rate": 1e9}
    project.write({"orders": {"topics": [name], "backpressure": terms, "interval": "8s"}})
    assert project("plan")["streams"]["orders"] == {
        "batch": {
            "ranges": [
                {"topic": name, "partition": 0, "from": 0, "until": 2},
                {"topic": name, "partition": 1, "from": 0, "until": 6},
            ],
            "records_at_most": 8,
        },
        "reason": "backpressure: 1 offsets a second, so 8 of 16 in a batch each 8 s",
        "error": None,
    }
    assert "backpressure: 1 offsets a second" in project.text("plan")

    process = project.start("ingest", "--json")
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "waiting" in said
    assert "(backpressure: one batch each 8 s)" in said
    answer = json.loads(out)["streams"]["orders"]
    assert sizes_of_batches(project) == [8, 8]
    assert answer["records"] == 16
    assert project("verify")["ok"]
    planned = [at for (at,) in project.query("SELECT planned_at FROM kafka_assets.batches ORDER BY batch")]
    assert all((later - before).total_seconds() >= 8 for before, later in pairwise(planned))

    monkeypatch.chdir(project.folder)
    with dg.DagsterInstance.from_config(str(project.folder)) as instance:
        found = instance.fetch_materializations(dg.AssetKey(["orders"]), limit=5).records
        rates = {
            one.partition_key: one.asset_materialization.metadata
            for one in found
            if one.asset_materialization
        }
    # An estimate takes two batches.
    shown = [rates[key].get("backpressure_records_per_second") for key in answer["batches"]]
    assert [rate and rate.value for rate in shown] == [1, 1e9]


def test_batches_follow_the_size_of_records(project: Project, topic: TopicFactory, produce: Produce) -> None:
    """Batches stay near `max_bytes_per_batch` when records become a hundred times larger, and smaller again."""
    name = topic()
    project.write({"orders": {"topics": [name], "max_bytes_per_batch": 500_000, "max_batches_in_flight": 1}})
    produce(name, support.values(1000, size=1000), 0)
    project("ingest")
    # By the size of a few that were read for it, offsets and NULLs included, then by that of the first batch.
    first, *others = sizes_of_batches(project)
    assert 480 <= first < 500
    assert others == [500, 500 - first]
    produce(name, support.values(30, size=100_000, first=1000), 0)
    project("ingest")
    # Nothing tells that records have grown before the first of them are read.
    assert sizes_of_batches(project)[3:] == [30]
    produce(name, support.values(15, size=100_000, first=1030), 0)
    project("ingest")
    assert sizes_of_batches(project)[4:] == [5, 5, 5]
    produce(name, support.values(600, size=1000, first=1045), 0)
    project("ingest")
    shrunk = sizes_of_batches(project)[7:]
    assert shrunk[:2] == [5, 7]
    assert max(shrunk) == 500
    assert len(shrunk) <= 5
    project.assert_each_once(name, partitions=1, count=1645)


def test_a_backlog_is_planned_several_batches_at_once(
    project: Project, topic: TopicFactory, produce: Produce
) -> None:
    """All batches that may be in flight are planned in one go, the first ones too."""
    name = topic(partitions=2)
    project.write({"orders": {"topics": [name], "max_bytes_per_batch": 20_000, "max_batches_in_flight": 3}})
    for partition in range(2):
        produce(name, support.values(100, size=1000), partition)
    project("ingest")
    planned = project.query(
        "SELECT count(*) FROM kafka_assets.batches GROUP BY planned_at ORDER BY planned_at"
    )
    # Three at once, then two for those committed by when nobody waited to be fetched any more.
    assert [count for (count,) in planned][:2] == [3, 2]
    assert all(18 <= size <= 20 for size in sizes_of_batches(project)[:-1])
    project.assert_each_once(name, partitions=2, count=100)
