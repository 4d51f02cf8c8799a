"""The ledger: plans that tile the log, commits that are whole, replays that replace exactly."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta

import duckdb
import pytest

from kafka_assets import ledger
from kafka_assets.commits import GenerationMovedError
from kafka_assets.config.values import TableName
from kafka_assets.errors import (
    BatchUnknownError,
    ConfigInvalidError,
    RangeUnavailableError,
    RunFailedError,
    TableTakenError,
    WarehouseInvalidError,
)
from kafka_assets.ledger import PlanConflictError, RangeOutcome
from kafka_assets.offsets import OffsetRange, TopicPartition
from kafka_assets.planning import Loss, Plan, Position
from kafka_assets.records import ROW_GROUP_ROWS
from kafka_assets_tests import warehouse_support as support
from kafka_assets_tests.warehouse_support import NOW, commit, plan_of, planned, record, staged_of, state_of

ORDERS_0 = TopicPartition("orders", 0)
VIEWS = {
    "batches": "stream batch kind state planned_at committed_at run_id attempts last_error records rows",
    "offset_ranges": "stream batch topic topic_id incarnation partition from_offset until_offset state loaded"
    " filtered quarantined undeliverable lost removed",
    "positions": "stream topic topic_id incarnation partition start_offset planned_until committed_until",
    "quarantine": "stream _kafka_topic _kafka_partition _kafka_offset _kafka_timestamp _kafka_timestamp_type"
    " _kafka_key _kafka_headers _kafka_batch _ingested_at _kafka_value stage error",
    "losses": "stream topic topic_id incarnation partition from_offset until_offset reason noticed_at",
}


@pytest.fixture
def warehouse(tmp_path):
    return support.warehouse_at(tmp_path)


@pytest.fixture
def ranges():
    return [planned("orders", 0, 0, 200), planned("orders", 1, 5, 50)]


@pytest.fixture
def batch(warehouse, ranges):
    """A planned batch."""
    (key,) = record(warehouse, plan_of({}, ranges), version=0)
    return key


def query(warehouse, sql):
    with warehouse.reading() as con:
        return con.execute(sql).fetchall()


def run(warehouse, sql):
    with warehouse.writing() as con:
        con.execute(sql).fetchall()


def test_keys_are_utc_milliseconds():
    """A batch key is its planning time in UTC."""
    local = NOW.astimezone(None)
    assert ledger.batch_key(local, None) == "20261123T140512042Z"


@pytest.mark.parametrize("back", [timedelta(0), timedelta(seconds=1), timedelta(days=400)])
def test_keys_rise_when_the_clock_does_not(back):
    """With a clock that stands or goes back, a key is the successor of the greatest one."""
    assert ledger.batch_key(NOW - back, "20261123T235959999Z") == "20261124T000000000Z"


def test_nothing_there_is_an_empty_ledger(warehouse):
    """Reading a missing file, an empty database and an unknown stream are all the same."""
    assert ledger.read_stream(None, "orders") == ledger.StreamState()
    run(warehouse, "CREATE TABLE t (i INTEGER)")
    assert state_of(warehouse) == ledger.StreamState()
    with warehouse.writing() as con:
        ledger.ensure_schema(con)
        ledger.ensure_schema(con)
    assert state_of(warehouse) == ledger.StreamState()
    with warehouse.reading() as con:
        assert ledger.read_batch(con, "orders", "x") is None
        assert ledger.positions_report(con, "orders") == ()
        assert ledger.batch_counts(con, "orders") == ledger.BatchCounts()


@pytest.mark.usefixtures("batch")
def test_a_newer_ledger_is_refused(warehouse):
    """A ledger of another schema version is neither read nor written."""
    run(warehouse, "UPDATE kafka_assets_ledger.meta SET schema_version = 99")
    with pytest.raises(WarehouseInvalidError, match="version 99"):
        state_of(warehouse)
    with pytest.raises(WarehouseInvalidError, match="version 99"):
        record(warehouse, Plan(positions={}), version=1)


@pytest.mark.usefixtures("batch")
def test_views_have_the_published_columns(warehouse):
    """The views have exactly the documented columns, in that order."""
    with warehouse.reading() as con:
        found = {name: " ".join(con.sql(f"FROM kafka_assets.{name}").columns) for name in VIEWS}
    assert found == VIEWS


def test_the_first_plan_registers_the_stream_and_its_table(warehouse, ranges):
    """The first plan makes the table, metadata columns first, and writes batches and positions."""
    keys = record(warehouse, plan_of({}, ranges, [planned("orders", 0, 200, 300)]), version=0)
    assert keys == ("20261123T140512042Z", "20261123T140512043Z")
    state = state_of(warehouse)
    assert (state.known, state.plan_version, state.table, state.registered_at) == (True, 1, "orders", NOW)
    assert state.positions[ORDERS_0] == Position("id-0", 0, 0, 300, 3)
    assert [one.ranges for one in state.open_batches] == [tuple(ranges), (planned("orders", 0, 200, 300),)]
    assert (state.last_batch, state.last_planned_at, state.bytes_per_record) == (keys[1], NOW, None)
    columns = query(
        warehouse, "SELECT column_name, data_type, * FROM duckdb_columns() WHERE table_name = 'orders'"
    )
    assert [name for name, *_ in columns] == [*ledger.METADATA_COLUMNS, "_kafka_value"]


def test_a_plan_may_hold_positions_alone(warehouse):
    """First starts are written even when there is nothing to read."""
    position = Position("id-0", 0, 40, 40, None)
    assert record(warehouse, Plan(positions={ORDERS_0: position}), version=0) == ()
    assert state_of(warehouse).positions == {ORDERS_0: position}


def test_keys_start_above_the_floor(warehouse, ranges):
    """Keys known elsewhere are never used again."""
    assert record(warehouse, plan_of({}, ranges), version=0, floor="20300101T000000000Z") == (
        "20300101T000000001Z",
    )


def test_a_table_with_a_schema(warehouse, ranges):
    """A table in a schema of its own is made with that schema."""
    with warehouse.writing() as con:
        ledger.record_plan(
            con,
            "orders",
            table=TableName("sales", "orders"),
            columns=support.RAW,
            fingerprint="f",
            expected_version=0,
            plan=plan_of({}, ranges),
            planned_at=NOW,
            key_floor=None,
        )
    assert state_of(warehouse).table == "sales.orders"
    assert query(warehouse, "SELECT count(*) FROM sales.orders") == [(0,)]


@pytest.mark.parametrize("version", [0, 2])
@pytest.mark.usefixtures("batch")
def test_a_plan_from_an_old_look_is_refused(warehouse, version):
    """A plan made from another version of the stream changes nothing."""
    before = state_of(warehouse)
    with pytest.raises(PlanConflictError):
        record(warehouse, plan_of(before.positions, [planned("orders", 0, 200, 300)]), version=version)
    assert state_of(warehouse) == before


@pytest.mark.usefixtures("batch")
def test_of_two_planners_one_wins(warehouse):
    """Two planners that looked at the same time: one plan is written, the other refused."""
    state = state_of(warehouse)
    plan = plan_of(state.positions, [planned("orders", 0, 200, 300)])
    together, outcomes = threading.Barrier(2), []

    def attempt():
        together.wait()
        try:
            outcomes.append(record(warehouse, plan, version=1))
        except PlanConflictError:
            outcomes.append("refused")

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == ["('20261123T140512043Z',)", "refused"]
    assert state_of(warehouse).positions[ORDERS_0].planned_until == 300


@pytest.mark.usefixtures("batch")
def test_a_table_of_another_stream_is_taken(warehouse, ranges):
    """A second stream cannot have the table, in whatever case its name is written."""
    with pytest.raises(TableTakenError, match="belongs to stream orders"), warehouse.writing() as con:
        ledger.record_plan(
            con,
            "other",
            table=TableName("main", "Orders"),
            columns=support.RAW,
            fingerprint="f",
            expected_version=0,
            plan=plan_of({}, ranges),
            planned_at=NOW,
            key_floor=None,
        )


@pytest.mark.parametrize("what", ["TABLE orders (i INTEGER)", "VIEW orders AS SELECT 1 AS i"])
def test_a_table_that_was_there_is_taken(warehouse, ranges, what):
    """A table that no stream made is not written to."""
    run(warehouse, f"CREATE {what}")
    with pytest.raises(TableTakenError, match="no stream made it"):
        record(warehouse, plan_of({}, ranges), version=0)
    assert not state_of(warehouse).known


@pytest.mark.usefixtures("batch")
def test_another_table_in_the_file_is_refused(warehouse, monkeypatch):
    """A stream's rows do not go to a second table when its option changes."""
    monkeypatch.setattr(support, "TABLE", TableName(None, "elsewhere"))
    with pytest.raises(ConfigInvalidError, match=r"main\.orders"):
        record(warehouse, Plan(positions={}), version=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ALTER TABLE orders DROP COLUMN _kafka_key", "_kafka_key is missing"),
        ("ALTER TABLE orders ALTER _kafka_value TYPE VARCHAR", "_kafka_value is VARCHAR, not BLOB"),
        ("DROP TABLE orders", "is gone"),
    ],
)
def test_a_table_that_no_longer_fits_is_told(warehouse, batch, ranges, change, said):
    """A table altered by hand stops plans and commits, with the columns named."""
    run(warehouse, change)
    with pytest.raises(WarehouseInvalidError, match=said):
        record(warehouse, Plan(positions={}), version=1)
    with pytest.raises(WarehouseInvalidError, match=said):
        commit(warehouse, batch, [staged_of(ranges)])


def test_columns_added_by_hand_stay(warehouse, batch, ranges):
    """A column that users added does not disturb, and is NULL in new rows."""
    run(warehouse, "ALTER TABLE orders ADD COLUMN note VARCHAR")
    commit(warehouse, batch, [staged_of(ranges)])
    assert query(warehouse, "SELECT DISTINCT note FROM orders") == [(None,)]


@pytest.mark.parametrize(
    "pieces",
    [
        [(201, 300)],
        [(199, 300)],
        [(0, 200)],
        [(200, 250), (240, 300)],
        [(200, 250), (260, 300)],
    ],
)
@pytest.mark.usefixtures("batch")
def test_plans_that_do_not_tile_are_refused(warehouse, pieces):
    """A plan with a gap, an overlap or offsets planned before is not written."""
    before = state_of(warehouse)
    plan = plan_of(before.positions, *([planned("orders", 0, low, high)] for low, high in pieces))
    with pytest.raises(RunFailedError):
        record(warehouse, plan, version=1)
    assert state_of(warehouse) == before


@pytest.mark.parametrize(
    "position",
    [Position("id-0", 0, 0, 100, 3), Position("id-0", 0, 10, 200, 3), Position("id-0", 2, 0, 0, 3)],
)
@pytest.mark.usefixtures("batch")
def test_positions_do_not_go_back(warehouse, position):
    """A position never moves backwards, nor over an incarnation of the same topic."""
    with pytest.raises(RunFailedError):
        record(warehouse, Plan(positions={ORDERS_0: position}), version=1)


@pytest.mark.usefixtures("batch")
def test_a_range_without_its_position_is_refused(warehouse):
    """A planned range of a topic-partition whose position does not move is an error."""
    with pytest.raises(RunFailedError):
        record(warehouse, Plan(batches=((planned("orders", 0, 200, 300),),), positions={}), version=1)


@pytest.mark.usefixtures("batch")
def test_skipped_offsets_are_part_of_the_tiling(warehouse):
    """Offsets that a plan skips are booked as lost, and the next range begins after them."""
    loss = Loss(ORDERS_0, "id-0", 0, 200, 230, "gone")
    plan = plan_of(state_of(warehouse).positions, [planned("orders", 0, 230, 300)], losses=[loss])
    record(warehouse, plan, version=1)
    assert query(warehouse, "SELECT * EXCLUDE (noticed_at) FROM kafka_assets.losses") == [
        ("orders", "orders", "id-0", 0, 0, 200, 230, "gone")
    ]


@pytest.mark.usefixtures("batch")
def test_history_before_the_start_may_be_planned(warehouse):
    """A backfill's ranges tile what lies below the start, which moves down."""
    before = state_of(warehouse).positions
    place = TopicPartition("orders", 1)
    plan = Plan(
        batches=((planned("orders", 1, 0, 5),),), positions={place: replace(before[place], start_offset=0)}
    )
    record(warehouse, plan, version=1)
    assert state_of(warehouse).positions[place].start_offset == 0


@pytest.mark.usefixtures("batch")
def test_a_topic_made_again_begins_where_its_most_renewed_partition_does(warehouse):
    """Partitions that are behind others in incarnations, one of which was truncated, come level with them."""
    later = replace(planned("orders", 0, 0, 30, incarnation=3), topic_id="id-3")
    place = Position("id-3", 3, 0, 30, 3)
    record(warehouse, Plan(batches=((later,),), positions={ORDERS_0: place}), version=1)
    assert state_of(warehouse).positions[ORDERS_0] == place


def test_a_new_incarnation_begins_anew(warehouse, batch, ranges):
    """A recreated topic has a position of its own beside the old one, and loads into batches of its own."""
    commit(warehouse, batch, [staged_of(ranges)])
    again = [planned("orders", 0, 0, 30, incarnation=1)]
    (key,) = record(warehouse, plan_of(state_of(warehouse).positions, again), version=1)
    commit(warehouse, key, [staged_of(again)])
    assert state_of(warehouse).positions[ORDERS_0] == Position("id-1", 1, 0, 30, 3)
    with warehouse.reading() as con:
        report = ledger.positions_report(con, "orders")
    assert [(one.partition, one.incarnation, one.committed_until) for one in report] == [
        (0, 0, 200),
        (0, 1, 30),
        (1, 0, 50),
    ]


def test_attempts_are_claimed_once(warehouse, batch):
    """Of two who would launch the same attempt, one may."""
    with warehouse.writing() as con:
        assert ledger.claim_attempt(con, "orders", batch, 0, NOW)
        assert not ledger.claim_attempt(con, "orders", batch, 0, NOW)
    (row,) = state_of(warehouse).open_batches
    assert (row.attempts, row.launched_at) == (1, NOW)


def test_failures_are_kept_and_block(warehouse, batch, ranges):
    """The last error stays until the commit; a block until it is cleared."""
    with warehouse.writing() as con:
        ledger.record_failure(con, "orders", batch, error="BAD_RECORD: x", blocked=True)
    (row,) = state_of(warehouse).open_batches
    assert (row.last_error, row.blocked) == ("BAD_RECORD: x", True)
    with warehouse.writing() as con:
        assert ledger.batch_counts(con, "orders") == ledger.BatchCounts(planned=1, blocked=1)
        ledger.clear_block(con, "orders", batch)
        assert ledger.batch_counts(con, "orders") == ledger.BatchCounts(planned=1, failed=1)
    assert commit(warehouse, batch, [staged_of(ranges)]).last_error is None
    with warehouse.writing() as con:
        ledger.record_failure(con, "orders", batch, error="a replay failed", blocked=True)
        row = ledger.read_batch(con, "orders", batch)
    assert (row.last_error, row.blocked) == ("a replay failed", False)


def test_a_commit_writes_rows_outcomes_and_state(warehouse, batch, ranges):
    """Rows, classes and state of a batch are there together, over slices that cut a range."""
    head, tail = planned("orders", 0, 0, 80), planned("orders", 0, 80, 200)
    slices = [staged_of([tail], missing={80, 199}), staged_of([head, ranges[1]], missing={7})]
    row = commit(warehouse, batch, slices, run="run-7")
    assert (row.state, row.generation, row.run_id, row.committed_at) == ("committed", 1, "run-7", NOW)
    assert row.outcomes == (RangeOutcome(197, 0, 0, 3, 0, 0, 1970), RangeOutcome(44, 0, 0, 1, 0, 0, 440))
    assert (row.rows, row.records) == (241, 241)
    assert query(
        warehouse,
        "SELECT _kafka_partition, count(*), min(_kafka_offset), max(_kafka_offset), min(_kafka_batch),"
        " min(_ingested_at) FROM orders GROUP BY 1 ORDER BY 1",
    ) == [(0, 197, 0, 198, batch, NOW), (1, 44, 5, 49, batch, NOW)]
    state = state_of(warehouse)
    assert (state.open_batches, state.recently_committed, state.bytes_per_record) == ((), (row,), 10.0)
    assert query(warehouse, "SELECT state, records, rows FROM kafka_assets.batches") == [
        ("committed", 241, 241)
    ]


@pytest.mark.parametrize(("count", "threads"), [(ROW_GROUP_ROWS, 2), (50_000, 1)])
def test_rows_keep_their_order_over_row_groups(warehouse, count, threads):
    """Batches of whole row groups are written by two threads, others by one, in the order they were fetched in."""
    both = [planned("orders", partition, 0, count) for partition in (0, 1)]
    (key,) = record(warehouse, plan_of({}, both), version=0)
    assert commit(warehouse, key, [staged_of(both)]).rows == 2 * count
    connection = warehouse._standing.connection
    assert connection.execute("SELECT current_setting('threads')").fetchall() == [(threads,)]
    assert query(
        warehouse,
        "SELECT count(*), count(DISTINCT place - wanted), min(place - wanted) FROM (SELECT rowid AS place,"
        " row_number() OVER (ORDER BY _kafka_partition, _kafka_offset) - 1 AS wanted FROM orders)",
    ) == [(2 * count, 1, 0)]


def test_a_batch_without_a_row_commits(warehouse, batch, ranges):
    """A batch of nothing but undeliverable offsets commits."""
    row = commit(warehouse, batch, [staged_of(ranges, missing=range(200))])
    assert (row.rows, [one.undeliverable for one in row.outcomes]) == (0, [200, 45])
    assert state_of(warehouse).bytes_per_record is None


def test_committed_until_stops_at_the_first_open_batch(warehouse, batch, ranges):
    """Batches commit in any order; the contiguous position and the hole below the last say so."""
    state = state_of(warehouse)
    (second,) = record(warehouse, plan_of(state.positions, [planned("orders", 0, 200, 300)]), version=1)
    commit(warehouse, second, [staged_of([planned("orders", 0, 200, 300)])])
    with warehouse.reading() as con:
        report = ledger.positions_report(con, "orders")
    assert [(one.committed_until, one.planned_until, one.hole) for one in report] == [
        (0, 300, 200),
        (5, 50, 0),
    ]
    commit(warehouse, batch, [staged_of(ranges)])
    assert query(warehouse, "SELECT committed_until FROM kafka_assets.positions ORDER BY partition") == [
        (300,),
        (50,),
    ]


def damaged(ranges, what):  # noqa: PLR0911  a case each
    staged, rows = staged_of(ranges, missing={3})
    first, *others = staged.ranges
    match what:
        case "a range left out":
            return replace(staged, ranges=tuple(others)), rows
        case "a range twice":
            return replace(staged, ranges=(first, first, *others)), rows
        case "a range not planned":
            extra = replace(first, evidence=replace(first.evidence, planned=planned("other", 0, 0, 1)))
            return replace(staged, ranges=(first, *others, extra)), rows
        case "another incarnation":
            evidence = replace(first.evidence, planned=replace(first.evidence.planned, incarnation=4))
            return replace(staged, ranges=(replace(first, evidence=evidence), *others)), rows
        case "a record not accounted for":
            evidence = replace(first.evidence, undeliverable=0)
            return replace(staged, ranges=(replace(first, evidence=evidence), *others)), rows
        case "a row too few":
            return staged, rows.slice(1)
        case "a row of another offset":
            return staged, rows.set_column(
                2, "_kafka_offset", [[1000, *rows["_kafka_offset"].to_pylist()[1:]]]
            )
        case "a column too few":
            return staged, rows.drop_columns(["_kafka_key"])
    raise AssertionError(what)


@pytest.mark.parametrize(
    "what",
    [
        "a range left out",
        "a range twice",
        "a range not planned",
        "another incarnation",
        "a record not accounted for",
        "a row too few",
        "a row of another offset",
        "a column too few",
    ],
)
def test_what_does_not_add_up_is_not_committed(warehouse, batch, ranges, what):
    """Staged data that is not exactly what was planned and fetched leaves everything as it was."""
    with pytest.raises(RunFailedError):
        commit(warehouse, batch, [damaged(ranges, what)])
    assert query(warehouse, "SELECT count(*) FROM orders") == [(0,)]
    assert state_of(warehouse).open_batches[0].generation == 0


@pytest.mark.usefixtures("batch")
def test_an_unknown_batch_is_refused(warehouse, ranges):
    """A key that was never planned cannot be committed."""
    with pytest.raises(BatchUnknownError):
        commit(warehouse, "20200101T000000000Z", [staged_of(ranges)])


def test_the_second_of_two_runs_finds_the_generation_moved(warehouse, batch, ranges):
    """A batch that another run committed is left alone, and told as it is now."""
    done = commit(warehouse, batch, [staged_of(ranges)])
    with pytest.raises(GenerationMovedError) as moved:
        commit(warehouse, batch, [staged_of(ranges, value=lambda _: b"second")], run="run-2")
    assert moved.value.batch == done
    assert query(warehouse, "SELECT count(*) FROM orders WHERE _kafka_value = 'second'") == [(0,)]


def test_two_runs_at_once_load_once(warehouse, batch, ranges):
    """Two threads that commit the same batch at once: one loads, the other is told."""
    together, outcomes = threading.Barrier(2), []

    def attempt(run_id):
        staged = staged_of(ranges)
        together.wait()
        try:
            outcomes.append(commit(warehouse, batch, [staged], run=run_id).generation)
        except GenerationMovedError as moved:
            outcomes.append(-moved.batch.generation)

    threads = [threading.Thread(target=attempt, args=(f"run-{n}",)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [-1, 1]
    assert query(warehouse, "SELECT count(*) FROM orders") == [(245,)]


def test_a_replay_replaces_exactly_its_batch(warehouse, batch, ranges):
    """A replay's rows take the place of the batch's own, those of others stay."""
    state = state_of(warehouse)
    (second,) = record(warehouse, plan_of(state.positions, [planned("orders", 0, 200, 300)]), version=1)
    commit(warehouse, second, [staged_of([planned("orders", 0, 200, 300)])])
    commit(warehouse, batch, [staged_of(ranges, missing={9})])
    later = NOW + timedelta(hours=1)
    again = [staged_of(ranges, missing={9}, value=lambda _: b"new")]
    row = commit(warehouse, batch, again, generation=1, run="run-2", now=later)
    assert (row.generation, row.run_id, row.rows) == (2, "run-2", 243)
    assert query(
        warehouse,
        "SELECT _kafka_batch, count(*), count(*) FILTER (_kafka_value = 'new'), min(_ingested_at)"
        " FROM orders GROUP BY 1 ORDER BY 1",
    ) == [(batch, 243, 243, later), (second, 100, 0, NOW)]


def test_a_replay_may_bring_back_what_is_missing(warehouse, batch, ranges):
    """Rows that someone deleted come back with a replay."""
    commit(warehouse, batch, [staged_of(ranges)])
    run(warehouse, "DELETE FROM orders WHERE _kafka_offset < 100")
    commit(warehouse, batch, [staged_of(ranges)], generation=1)
    assert query(
        warehouse, "SELECT count(*), count(DISTINCT (_kafka_partition, _kafka_offset)) FROM orders"
    ) == [(245, 245)]


def test_a_replay_never_deletes_what_kafka_no_longer_has(warehouse, batch, ranges):
    """Where a row in the table was not fetched again, the replay is refused and nothing changes."""
    before = commit(warehouse, batch, [staged_of(ranges)])
    with pytest.raises(RangeUnavailableError, match=r"orders\[0\]: 2 between offsets 11 and 12"):
        commit(
            warehouse, batch, [staged_of(ranges[:1], missing={11, 12}), staged_of(ranges[1:])], generation=1
        )
    with warehouse.reading() as con:
        assert ledger.read_batch(con, "orders", batch) == before
    assert query(warehouse, "SELECT count(*) FROM orders") == [(245,)]


def test_losses_in_a_range_are_booked_once(warehouse, batch, ranges):
    """Stretches lost at the fetch are in the losses once, replayed or not, with the time first noticed."""
    lost = [OffsetRange("orders", 0, 0, 40), OffsetRange("orders", 1, 5, 6)]
    head, tail = planned("orders", 0, 0, 30), planned("orders", 0, 30, 200)
    first = commit(warehouse, batch, [staged_of([head], lost=lost), staged_of([tail, ranges[1]], lost=lost)])
    assert [one.lost for one in first.outcomes] == [40, 1]
    later = NOW + timedelta(hours=1)
    commit(warehouse, batch, [staged_of(ranges, lost=lost)], generation=1, now=later)
    assert query(
        warehouse,
        "SELECT partition, from_offset, until_offset, noticed_at FROM kafka_assets.losses ORDER BY 1",
    ) == [(0, 0, 40, NOW), (1, 5, 6, NOW)]


def test_the_latest_batches_come_newest_first(warehouse):
    """The twenty latest commits are told, newest first, with the bytes a record takes over them."""
    version, low = 0, 0
    for number in range(22):
        state = state_of(warehouse)
        part = [planned("orders", 0, low, low + 2)]
        (key,) = record(warehouse, plan_of(state.positions, part), version=version)
        commit(warehouse, key, [staged_of(part)], now=NOW + timedelta(seconds=number))
        version, low = version + 1, low + 2
    state = state_of(warehouse)
    assert [one.ranges[0].range.from_offset for one in state.recently_committed] == list(range(42, 2, -2))
    assert state.bytes_per_record == 10.0


def test_a_plan_over_many_partitions(warehouse):
    """A batch of two thousand topic-partitions is planned and read back whole."""
    wide = [planned("orders", number, 0, 3) for number in range(2000)]
    record(warehouse, plan_of({}, wide), version=0)
    assert state_of(warehouse).open_batches[0].ranges == tuple(wide)


def test_nothing_is_left_registered(warehouse, batch, ranges):
    """A commit leaves no name of its own on the connection, nor a staged table in memory."""
    commit(warehouse, batch, [staged_of(ranges)])
    with pytest.raises(duckdb.CatalogException), warehouse.reading() as con:
        con.execute("FROM _kafka_assets_staged")
