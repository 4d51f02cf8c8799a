"""`expire`: rows removed on purpose, booked, proven, and never back."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kafka_assets import coverage
from kafka_assets.config import FormatConfig, KafkaProperties, StreamConfig, Topics, load_config
from kafka_assets.errors import RangeUnavailableError, UsageInvalidError
from kafka_assets.ledger import METADATA_COLUMNS
from kafka_assets.operations.expire import check_predicate, expire
from kafka_assets.scope import ReplayScope
from kafka_assets.warehouse import Warehouse
from kafka_assets_tests import warehouse_support as without_kafka
from kafka_assets_tests.faults.story import STREAM
from kafka_assets_tests.faults.test_compaction import COMPACTED, KEPT, LAST, RECORDS, compact
from kafka_assets_tests.operations.support import refusal, typed
from kafka_assets_tests.support.kafka import Record, delete_records, values
from kafka_assets_tests.warehouse_support import commit, plan_of, planned, record, staged_of

NOON = 1_767_268_800_000
COLUMNS = {**METADATA_COLUMNS, "value": "VARCHAR"}


def expired(story, *arguments, exit_code=0):
    answer = story.command("expire", *arguments)
    assert answer.exit_code == exit_code, answer
    return answer.stream


def told(story, statement):
    with Warehouse.of(load_config(story.file).warehouse).writing() as connection:
        connection.execute(statement).fetchall()


@pytest.fixture
def loaded(story, topic, produce):
    """Six records, a second apart from noon on, the last one without a key, in two batches; returns the topic."""
    name = topic()
    produce(
        name,
        [
            Record(value, key=b"k" if at < 5 else None, timestamp_ms=NOON + 1000 * at)
            for at, value in enumerate(values(6))
        ],
        0,
    )
    story.setting(topics=[name], max_records_per_batch=3)
    story.ingest()
    return name


def test_without_yes_it_only_shows(story, loaded):
    """The count by planned range, exit 2, no error, and nothing is changed."""
    before = story.rows(), story.proof()
    shown = expired(story, "--before", "2026-01-01T12:00:04Z", exit_code=2)
    assert (shown["applied"], shown["error"], shown["removed"]) == (False, None, 4)
    assert shown["ranges"] == [
        {"topic": loaded, "partition": 0, "from": 0, "until": 3, "removed": 3},
        {"topic": loaded, "partition": 0, "from": 3, "until": 6, "removed": 1},
    ]
    assert (story.rows(), story.proof()) == before
    assert story.query("SELECT count(*) FROM kafka_assets_ledger.removals") == [(0,)]
    code, text = typed(story, "expire", "--before", "2026-01-01T12:00:04Z")
    assert (code, "4 rows would be removed" in text) == (2, True)


def test_what_is_old_is_removed_booked_and_stays_removed(story, loaded):
    """Rows go, their offsets are in class `removed`, the proof holds, and no replay brings them back."""
    name, (first, second) = loaded, story.batch_keys()
    done = expired(story, "--before", "2026-01-01T12:00:04Z", "--yes")
    assert (done["applied"], done["removed"]) == (True, 4)
    assert [row[2] for row in story.rows()] == [4, 5]
    proof = {(name, 0, 0): {"from": 0, "until": 6, "loaded": 2, "removed": 4}}
    assert story.proof() == proof
    assert story.query('SELECT "rows", records FROM kafka_assets.batches ORDER BY batch') == [(0, 0), (2, 2)]

    replayed = story.command("replay", first, second)
    assert replayed.exit_code == 0
    assert [one["replaced"] for one in replayed.stream["ranges"]] == [0, 2]
    assert [row[2] for row in story.rows()] == [4, 5]
    assert story.proof() == proof
    assert expired(story, "--before", "2026-01-01T12:00:04Z", "--yes")["removed"] == 0
    assert story.proof() == proof


@pytest.mark.usefixtures("loaded")
def test_the_proof_still_sees_a_changed_row_after_a_removal(story):
    """Sum and digest of what remains are those of the rows that were fetched, not of what is there now."""
    told(story, "UPDATE orders SET _kafka_value = '!'::BLOB WHERE _kafka_offset = 1")
    expired(story, "--where", "_kafka_offset = 0", "--yes")
    answer = story.command("verify")
    assert answer.exit_code == 1
    (problem,) = answer.stream["problems"]
    assert "[0, 3)" in problem


def test_null_does_not_match_and_a_comment_does_no_harm(story, loaded):
    """Only what is true of a row removes it."""
    assert expired(story, "--where", "_kafka_key <> 'other'::BLOB -- all with a key", "--yes")["removed"] == 5
    assert [row[2] for row in story.rows()] == [5]
    story.command("replay", *story.batch_keys())
    assert [row[2] for row in story.rows()] == [5]
    assert story.proof()[loaded, 0, 0]["removed"] == 5


def test_it_holds_for_what_is_planned_and_not_for_what_comes_later(story, loaded, produce):
    """Rows of a batch that is not loaded yet are booked as removed by its first load; later ones are loaded."""
    name = loaded
    produce(name, [Record(b"secret"), Record(b"open")], 0)
    story.tick()
    assert expired(story, "--where", "_kafka_value = 'secret'::BLOB", "--yes")["removed"] == 0
    produce(name, [Record(b"secret")], 0)
    story.ingest()
    assert [row[3] for row in story.rows()[6:]] == [b"open", b"secret"]
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 9, "loaded": 8, "removed": 1}}


def test_what_kafka_no_longer_has_either_stays_removed(story, topic, produce, bootstrap):
    """Removed rows that compaction or retention took since are no reason to refuse a replay, and stay booked."""
    name = topic(config={**COMPACTED, "cleanup.policy": "compact,delete"})
    produce(name, RECORDS, 0)
    story.setting(topics=[name])
    story.ingest()
    gone = ", ".join(str(offset) for offset in range(LAST) if offset not in KEPT)
    assert (
        expired(story, "--where", f"_kafka_offset IN ({gone}, 10)", "--yes")["removed"]
        == LAST - len(KEPT) + 1
    )
    compact(bootstrap, produce, name, KEPT)
    (key,) = story.batch_keys()
    proof = story.proof()
    for until in (0, 5):
        delete_records(bootstrap, name, {0: until})
        replayed = story.command("replay", key, *(["--merge"] if until else []))
        assert (replayed.exit_code, replayed.code) == (0, None)
        assert [row[2] for row in story.rows()] == [offset for offset in KEPT if offset != 10]
        assert story.proof() == proof


@pytest.mark.usefixtures("loaded")
def test_an_earlier_moment_is_forgotten_for_a_later_one(story):
    """Retention that runs every day keeps one predicate, not one a day."""
    for second in (1, 2, 3, 2):
        expired(story, "--before", f"2026-01-01T12:00:0{second}Z", "--yes")
    removals = story.query("SELECT predicate FROM kafka_assets_ledger.removals ORDER BY 1")
    assert removals == [
        ("_kafka_timestamp < TIMESTAMPTZ '2026-01-01T12:00:02.000000+00:00'",),
        ("_kafka_timestamp < TIMESTAMPTZ '2026-01-01T12:00:03.000000+00:00'",),
    ]
    assert [row[2] for row in story.rows()] == [3, 4, 5]


@pytest.mark.parametrize(
    "predicate",
    [
        "",
        " ",
        "-- nothing",
        "value",
        "1",
        "NULL",
        "nothing = 1",
        "value = 'x'; DROP TABLE orders",
        "true) OR (true",
        "true) UNION SELECT (true",
        "true FROM other",
        "true WHERE true",
        "true, true",
        "true AS x",
        "true LIMIT 1",
        "DISTINCT true",
        "*",
        "COLUMNS(*) IS NULL",
        "value IN (SELECT value FROM other)",
        "EXISTS (FROM other)",
        "(SELECT true)",
        "$1 = value",
        "? = value",
        "value = $name",
        "_kafka_timestamp < now()",
        "_kafka_timestamp < current_timestamp",
        "_kafka_timestamp::DATE < current_date",
        "_kafka_timestamp::DATE < today()",
        "random() < 0.5",
        "nextval('s') > 0",
        "getvariable('x') = value",
        "_ingested_at < TIMESTAMPTZ '2026-01-01'",
        "rowid = 1",
        "count(*) > 1",
        "row_number() OVER () = 1",
        "unnest([true])",
        "value LIKE",
        "/* value = 'x'",
        "x'",
    ],
)
def test_what_is_no_property_of_a_row_is_refused(predicate):
    """One boolean expression over the row, the same at every replay: anything else is USAGE_INVALID."""
    with duckdb.connect() as con, pytest.raises(UsageInvalidError, match="Nothing was removed"):
        check_predicate(con, predicate, COLUMNS)


@pytest.mark.parametrize(
    "predicate",
    [
        "true",
        "value = 'it''s; DROP TABLE orders'",
        "value LIKE '%(select%' -- )",
        "value ILIKE 'X%' OR (_kafka_key IS NULL AND _kafka_partition IN (1, 2))",
        "_kafka_timestamp < TIMESTAMPTZ '2026-01-01' - INTERVAL 30 DAY",
        "extract(year FROM _kafka_timestamp) = 2025",
        "list_contains(list_transform(_kafka_headers, lambda h: h.key), 'gdpr')",
        'CASE WHEN TRY_CAST("value" AS INTEGER) > 1 THEN true END',
        "_kafka_batch <= '20260101T000000000Z' AND _KAFKA_OFFSET % 2 = 0",
        "VALUE BETWEEN 'a' AND 'b'",
    ],
)
def test_a_property_of_a_row_is_taken(predicate):
    """Whatever SQL can say of one row."""
    with duckdb.connect() as con:
        check_predicate(con, predicate, COLUMNS)


@pytest.mark.usefixtures("loaded")
def test_a_predicate_that_fails_on_a_row_changes_nothing(story):
    """It is said before anything is removed, so that it can be put in other words."""
    produced = story.rows()
    failing = ["--where", "decode(_kafka_value)::DATE > DATE '2026-01-01'"]
    assert refusal(story, "expire", *failing) == ("USAGE_INVALID", 2)
    assert refusal(story, "expire", *failing, "--yes") == ("USAGE_INVALID", 2)
    assert refusal(story, "expire") == ("USAGE_INVALID", 2)
    assert refusal(story, "expire", "--where", "true", "--before", "2026-01-01T00:00:00Z") == (
        "USAGE_INVALID",
        2,
    )
    assert story.rows() == produced


@pytest.mark.usefixtures("loaded")
def test_rows_that_the_ledger_does_not_know_are_not_removed_silently(story):
    """A table that was tampered with is looked at first."""
    told(story, "UPDATE orders SET _kafka_batch = 'other' WHERE _kafka_offset = 2")
    assert refusal(story, "expire", "--where", "true", "--yes") == ("PROOF_FAILED", 1)
    assert len(story.rows()) == 6


def test_a_stream_that_was_never_planned_has_nothing_to_remove(story):
    """With and without a warehouse."""
    story.setting(topics=["none"])
    assert expired(story, "--where", "true", exit_code=2)["ranges"] == []
    assert expired(story, "--where", "true", "--yes")["removed"] == 0


offsets = st.sets(st.integers(0, 29), max_size=10)
steps = st.lists(st.tuples(st.sampled_from(["expire", "replay", "merge"]), offsets), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(never=offsets, first=offsets, steps=steps, which=st.sampled_from([None, 0, 1]))
def test_any_order_of_removals_and_replays_keeps_what_was_not_removed(
    tmp_path_factory, never, first, steps, which
):
    """Rows are what was delivered once less what was removed; the proof holds after every step."""
    folder = tmp_path_factory.mktemp("expired")
    warehouse = without_kafka.warehouse_at(folder)
    stream = StreamConfig(
        name=STREAM,
        selection=Topics(("orders",)),
        table=without_kafka.TABLE,
        kafka=KafkaProperties({}),
        format=FormatConfig("raw", {}),
    )
    ranges = [planned("orders", 0, 0, 15), planned("orders", 1, 15, 30)]
    (key,) = record(warehouse, plan_of({}, ranges), version=0)

    def remove(these):
        listed = ", ".join(map(str, sorted(these)))
        expire(stream, warehouse, f"_kafka_offset IN ({listed})" if these else "false", apply=True)

    remove(first)
    generation = commit(warehouse, key, [staged_of(ranges, missing=never)]).generation
    rows, gone = set(range(30)) - never - first, set(never)
    for verb, these in steps:
        if verb == "expire":
            remove(these)
            rows -= these
        else:
            gone |= these
            chosen = ranges if which is None else [ranges[which]]
            scope = ReplayScope(() if which is None else (chosen[0].range,), merge=verb == "merge")
            wanted = {at for one in chosen for at in range(one.range.from_offset, one.range.until_offset)}
            staged = [staged_of(chosen, missing=gone)]
            if verb == "replay" and rows & wanted & gone:
                with pytest.raises(RangeUnavailableError):
                    commit(warehouse, key, staged, generation=generation, scope=scope)
            else:
                generation = commit(warehouse, key, staged, generation=generation, scope=scope).generation
        with warehouse.reading() as con:
            proof = coverage.verify(con, STREAM, without_kafka.RAW)
            held = con.execute("SELECT _kafka_offset FROM orders ORDER BY 1").fetchall()
        assert proof.problems == ()
        assert sum(one.undeliverable for one in proof.partitions) == len(never)
        assert [at for (at,) in held] == sorted(rows)
    warehouse._standing.drop()
