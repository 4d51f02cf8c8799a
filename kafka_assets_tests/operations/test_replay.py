"""`replay` by range, by time and with `--merge`: exactly those ranges, and never a row that is gone from Kafka."""

from __future__ import annotations

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kafka_assets import coverage
from kafka_assets.config import load_config
from kafka_assets.errors import RangeUnavailableError, UsageInvalidError
from kafka_assets.offsets import OffsetRange, PlannedRange
from kafka_assets.scope import MERGE_TAG, RANGES_TAG, ReplayScope, format_range, parse_range
from kafka_assets.warehouse import Warehouse
from kafka_assets_tests import warehouse_support as rows_of_none
from kafka_assets_tests.faults.brokers import create_again, settle
from kafka_assets_tests.faults.story import STREAM
from kafka_assets_tests.faults.test_compaction import COMPACTED, KEPT, LAST, RECORDS, compact
from kafka_assets_tests.operations.support import refusal, typed
from kafka_assets_tests.orchestration.support import Bench
from kafka_assets_tests.support.kafka import Record, delete_records, produce_transaction, values
from kafka_assets_tests.warehouse_support import commit, plan_of, planned, record, staged_of

NOON = 1_767_268_800_000


def alter(story, statement):
    with Warehouse.of(load_config(story.file).warehouse).writing() as connection:
        connection.execute(statement).fetchall()


def replay(story, *arguments, exit_code=0):
    answer = story.command("replay", *arguments)
    assert answer.exit_code == exit_code, answer
    return answer


def changed(story):
    """Partition and offset of the rows that no replay has touched since `spoil`."""
    return story.query(
        "SELECT _kafka_partition, _kafka_offset FROM orders WHERE _kafka_value = '!'::BLOB ORDER BY ALL"
    )


def spoil(story):
    alter(story, "UPDATE orders SET _kafka_value = '!'::BLOB")


@pytest.fixture
def loaded(story, topic, produce):
    """Two partitions of six records each, in batches of three offsets of each; returns the topic."""
    name = topic(partitions=2)
    for partition in (0, 1):
        produce(
            name,
            [Record(value, timestamp_ms=NOON + 1000 * at) for at, value in enumerate(values(6))],
            partition,
        )
    story.setting(topics=[name], max_records_per_batch=6)
    story.ingest()
    return name


def test_a_range_is_replaced_and_the_rest_of_its_batch_is_not_touched(story, loaded, capsys):
    """It is widened to the planned range, which is said; the run shows in Dagster what it is to replace."""
    name, (first, second) = loaded, story.batch_keys()
    before = story.rows()
    spoil(story)
    answer = replay(story, "--range", f"{name}:1:1:2")
    assert answer.stream["ranges"] == [{"topic": name, "partition": 1, "from": 0, "until": 3, "replaced": 3}]
    said = capsys.readouterr().err
    assert f"{name}[1] [0, 1), {name}[1] [2, 3)" in said
    assert changed(story) == [(0, at) for at in range(6)] + [(1, at) for at in range(3, 6)]
    assert story.query("SELECT batch, generation FROM kafka_assets_ledger.batches ORDER BY 1") == [
        (first, 2),
        (second, 1),
    ]
    with dg.DagsterInstance.get() as instance:
        (run,) = instance.get_runs(dg.RunsFilter(tags={RANGES_TAG: f"{name}:1:0:3"}))
        assert run.tags["dagster/partition"] == first

    replay(story, "--range", f"{name}:0:0:6", "--range", f"{name}:1:4:5")
    assert story.rows() == before
    assert story.proof() == {(name, at, 0): {"from": 0, "until": 6, "loaded": 6} for at in (0, 1)}


@pytest.mark.usefixtures("loaded")
def test_a_time_names_the_ranges_with_records_in_it(story, capsys):
    """From `--since` on and before `--until`, which is exclusive; a time without records is no error."""
    spoil(story)
    third = "2026-01-01T12:00:03Z"
    assert replay(story, "--until", "2026-01-01T12:00:00Z").stream["ranges"] == []
    assert "nothing to replay" in capsys.readouterr().err
    answer = replay(story, "--since", third, "--until", "2026-01-01T12:00:04Z")
    assert [(one["partition"], one["from"], one["replaced"]) for one in answer.stream["ranges"]] == [
        (0, 3, 3),
        (1, 3, 3),
    ]
    assert changed(story) == [(at, offset) for at in (0, 1) for offset in range(3)]
    assert len(replay(story, "--until", third).stream["ranges"]) == 2
    assert changed(story) == []
    assert len(replay(story, "--since", "2026-01-01T12:00:02Z").stream["ranges"]) == 4


def test_executing_the_run_again_in_dagster_does_the_same(story, loaded):
    """The ranges stand on the run, and whatever executes it again takes them over."""
    name, (first, _) = loaded, story.batch_keys()
    replay(story, "--range", f"{name}:0:0:3")
    spoil(story)
    with dg.DagsterInstance.get() as instance:
        (run,) = instance.get_runs(dg.RunsFilter(tags={RANGES_TAG: f"{name}:0:0:3"}))
        bench = Bench(story.file, instance)
        assert bench.click(first, parent=run).is_success
        assert changed(story) == [(0, at) for at in range(3, 6)] + [(1, at) for at in range(6)]
        odd = bench.click(first, {RANGES_TAG: f"{name}:0:0:2"})
        assert bench.failure(odd).startswith("USAGE_INVALID")
    assert len(changed(story)) == 9


def test_a_batch_that_is_only_planned_is_loaded_whole(story, topic, produce, capsys):
    """There is nothing to replace yet, and a batch is loaded as a whole or not at all."""
    name = topic(partitions=2)
    for partition in (0, 1):
        produce(name, values(3), partition)
    story.setting(topics=[name])
    story.tick()
    answer = replay(story, "--range", f"{name}:0:0:1")
    assert [(one["partition"], one["until"], one["replaced"]) for one in answer.stream["ranges"]] == [
        (0, 3, 0),
        (1, 3, 0),
    ]
    assert "only planned" in capsys.readouterr().err
    assert story.proof() == {(name, at, 0): {"from": 0, "until": 3, "loaded": 3} for at in (0, 1)}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--merge"],
        ["--range", "{name}:0:0:7"],
        ["--range", "{name}:2:0:1"],
        ["--range", "{name}:0:1:1"],
        ["--range", "{name}:0:1"],
        ["--range", "{name}:0:-1:2"],
        ["--since", "yesterday"],
        ["--since", "2026-01-01T12:00:00"],
        ["--since", "2026-01-02T00:00:00Z", "--until", "2026-01-01T00:00:00Z"],
        ["20200101T000000000Z", "--range", "{name}:0:0:1"],
        ["--since", "2026-01-01T12:00:00Z", "--range", "{name}:0:0:1"],
    ],
)
def test_what_makes_no_sense_is_refused(story, loaded, arguments):
    """Offsets that were never planned, times without a zone, two ways at once: nothing is fetched."""
    spoil(story)
    typed_out = [argument.format(name=loaded) for argument in arguments]
    assert refusal(story, "replay", *typed_out) == ("USAGE_INVALID", 2)
    assert len(changed(story)) == 12


def test_a_replay_that_compaction_has_thinned_is_merged_on_request(story, topic, produce, bootstrap):
    """Without `--merge` it is refused; with it, what Kafka still has is replaced and the other rows are kept."""
    name = topic(config=COMPACTED)
    produce(name, RECORDS, 0)
    story.setting(topics=[name], max_records_per_batch=25)
    story.ingest()
    keys = story.batch_keys()[:2]
    before = story.rows()[:LAST]
    compact(bootstrap, produce, name, KEPT)

    refused = replay(story, "--range", f"{name}:0:0:{LAST}", exit_code=3)
    assert (refused.code, refused.stream["ranges"]) == ("RANGE_UNAVAILABLE", [])
    assert "--merge" in refused.message

    written = "SELECT _kafka_offset, _ingested_at FROM orders ORDER BY 1"
    old = dict(story.query(written)[:LAST])
    merged = replay(story, *keys, "--merge")
    assert [one["replaced"] for one in merged.stream["ranges"]] == [2, 4]
    assert story.rows()[:LAST] == before
    assert [at for at, when in story.query(written)[:LAST] if when > old[at]] == KEPT
    assert story.proof()[name, 0, 0]["loaded"] == LAST
    with dg.DagsterInstance.get() as instance:
        assert instance.get_runs(dg.RunsFilter(tags={MERGE_TAG: "true", "dagster/partition": keys[0]}))


def test_what_retention_took_is_kept_by_a_merge(story, loaded, bootstrap):
    """Also where Kafka has nothing at all of a batch any more: then nothing is replaced."""
    name, (first, second) = loaded, story.batch_keys()
    before = story.rows()
    delete_records(bootstrap, name, {0: 4, 1: 5})
    refused = replay(story, second, exit_code=3)
    assert refused.code == "RANGE_UNAVAILABLE"
    assert f"{name}[0]: 1 between offsets 3 and 3" in refused.message
    merged = replay(story, first, second, "--merge")
    assert [one["replaced"] for one in merged.stream["ranges"]] == [0, 0, 2, 1]
    assert story.rows() == before
    assert story.proof() == {(name, at, 0): {"from": 0, "until": 6, "loaded": 6} for at in (0, 1)}


def test_retention_that_took_only_what_was_never_delivered_does_not_matter(story, topic, produce, bootstrap):
    """Aborted records below the log start were undeliverable and still are: nothing is lost by a replay."""
    name = topic()
    produce_transaction(bootstrap, name, values(4), "abort", partition=0)
    settle(bootstrap, name)
    produce(name, values(3), 0)
    story.setting(topics=[name])
    (key,) = story.ingest().stream["batches"]
    proof = story.proof()
    assert proof == {(name, 0, 0): {"from": 0, "until": 8, "loaded": 3, "undeliverable": 5}}
    delete_records(bootstrap, name, {0: 3})
    assert replay(story, key).stream["ranges"][0]["replaced"] == 3
    assert story.proof() == proof
    assert story.losses() == []


def test_what_was_lost_before_it_was_read_stays_lost_once(story, topic, produce, bootstrap):
    """A replay of a range with a loss books it neither again nor away."""
    name = topic()
    produce(name, values(6), 0)
    story.setting(topics=[name], on_data_loss="skip")
    story.tick()
    delete_records(bootstrap, name, {0: 2})
    (key,) = story.ingest().stream["batches"]
    proof = {(name, 0, 0): {"from": 0, "until": 6, "loaded": 4, "lost": 2}}
    assert story.proof() == proof
    for _ in range(2):
        replay(story, key)
        assert story.proof() == proof
        assert story.losses() == [(name, 0, 0, 2)]
    delete_records(bootstrap, name, {0: 4})
    assert replay(story, key, exit_code=3).code == "RANGE_UNAVAILABLE"
    replay(story, key, "--merge")
    assert story.proof() == proof
    assert story.losses() == [(name, 0, 0, 2)]


def test_an_earlier_incarnation_is_never_replayed(story, loaded, produce, bootstrap):
    """A topic of the same name has other records under these offsets: the rows are kept, merged or not."""
    name, keys = loaded, story.batch_keys()
    before = story.rows()
    create_again(bootstrap, name, 2)
    produce(name, values(3, first=100), 0)
    story.setting(topics=[name], on_topic_recreated="restart")
    story.ingest()
    for merge in ([], ["--merge"]):
        assert replay(story, keys[0], *merge, exit_code=3).code == "RANGE_UNAVAILABLE"
    assert replay(story, "--range", f"{name}:0:0:3").stream["ranges"][0]["replaced"] == 3
    assert sorted(row for row in story.rows() if not row[3].startswith(b"00000001")) == before
    assert story.proof()[name, 0, 0] == {"from": 0, "until": 6, "loaded": 6}


def test_a_replay_is_told_to_people_as_a_table(story, loaded):
    """Without `--json` stdout has what was replaced."""
    code, text = typed(story, "replay", "--range", f"{loaded}:0:0:3")
    assert (code, "replaced" in text, loaded in text) == (0, True, True)


@given(st.from_regex(r"[a-zA-Z0-9._-]{1,40}", fullmatch=True), st.integers(0, 99), st.data())
def test_a_range_and_its_text_are_the_same(topic, partition, data):
    """What is written on a run is what was asked for."""
    low = data.draw(st.integers(0, 2**62))
    one = OffsetRange(topic, partition, low, data.draw(st.integers(low + 1, 2**63 - 1)))
    assert parse_range(format_range(one)) == one
    scope = ReplayScope((one,), merge=data.draw(st.booleans()))
    assert ReplayScope.from_tags(scope.to_tags()) == scope
    assert scope.of([PlannedRange(one)]) == (PlannedRange(one),)
    with pytest.raises(UsageInvalidError):
        scope.of([])


offsets = st.sets(st.integers(0, 29), max_size=12)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    never=offsets,
    steps=st.lists(st.tuples(st.sampled_from([None, 0, 1]), st.booleans(), offsets), max_size=5),
)
def test_any_replays_leave_every_row_and_the_proof_as_they_were(tmp_path_factory, never, steps):
    """Whatever Kafka has lost by then, a replay is refused or merged, and no offset changes its class."""
    folder = tmp_path_factory.mktemp("replays")
    warehouse = rows_of_none.warehouse_at(folder)
    ranges = [planned("orders", 0, 0, 15), planned("orders", 1, 15, 30)]
    (key,) = record(warehouse, plan_of({}, ranges), version=0)
    row = commit(warehouse, key, [staged_of(ranges, missing=never)])
    outcomes, gone = row.outcomes, set(never)
    for which, merge, more in steps:
        gone |= more
        chosen = ranges if which is None else [ranges[which]]
        scope = ReplayScope(() if which is None else (chosen[0].range,), merge=merge)
        staged = staged_of(chosen, missing=gone)
        wanted = {offset for one in chosen for offset in range(one.range.from_offset, one.range.until_offset)}
        if (wanted - never) & gone and not merge:
            with pytest.raises(RangeUnavailableError):
                commit(warehouse, key, [staged], generation=row.generation, scope=scope)
        else:
            row = commit(warehouse, key, [staged], generation=row.generation, scope=scope)
        with warehouse.reading() as con:
            assert coverage.verify(con, STREAM, rows_of_none.RAW).problems == ()
            held = con.execute("SELECT _kafka_offset FROM orders ORDER BY 1").fetchall()
        assert [offset for (offset,) in held] == sorted(set(range(30)) - never)
        for before, after in zip(outcomes, row.outcomes, strict=True):
            assert (before.loaded, before.undeliverable, before.lost) == (
                after.loaded,
                after.undeliverable,
                after.lost,
            )
    warehouse._standing.drop()
