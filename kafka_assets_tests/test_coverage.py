"""The coverage proof: it holds for what was written, and names what was tampered with."""

from __future__ import annotations

from datetime import timedelta

import pytest

from kafka_assets import coverage, ledger, ledger_sql
from kafka_assets.errors import BatchUnknownError, WarehouseInvalidError
from kafka_assets.offsets import OffsetRange, TopicPartition
from kafka_assets.planning import Loss
from kafka_assets.scope import ReplayScope
from kafka_assets_tests import warehouse_support as support
from kafka_assets_tests.warehouse_support import NOW, commit, plan_of, planned, record, staged_of, state_of

FIRST = [planned("orders", 0, 0, 200), planned("orders", 1, 5, 50)]
SECOND = [planned("orders", 0, 230, 300)]
OPEN = [planned("orders", 0, 300, 310)]


@pytest.fixture
def warehouse(tmp_path):
    return support.warehouse_at(tmp_path)


@pytest.fixture
def keys(warehouse):
    """Two committed batches with a skipped stretch between them, and an open one."""
    (first,) = record(warehouse, plan_of({}, FIRST), version=0)
    skipped = Loss(TopicPartition("orders", 0), "id-0", 0, 200, 230, "gone")
    (second,) = record(
        warehouse,
        plan_of(state_of(warehouse).positions, SECOND, losses=[skipped]),
        version=1,
        now=NOW + timedelta(minutes=1),
    )
    (third,) = record(warehouse, plan_of(state_of(warehouse).positions, OPEN), version=2)
    commit(warehouse, first, [staged_of(FIRST, missing={7, 8}, lost=[OffsetRange("orders", 0, 0, 4)])])
    commit(warehouse, second, [staged_of(SECOND, missing={299})])
    return first, second, third


def verify(warehouse, **options):
    with warehouse.reading() as con:
        return coverage.verify(con, support.STREAM, support.RAW, **options)


def run(warehouse, sql):
    with warehouse.writing() as con:
        con.execute(sql).fetchall()


@pytest.mark.usefixtures("keys")
def test_the_classes_add_up(warehouse):
    """Every offset up to the planned end is in one class, the skipped and the pending included."""
    found = verify(warehouse)
    assert (found.ok, found.problems) == (True, ())
    assert found.partitions[0].to_dict() == {
        "topic": "orders",
        "topic_id": "id-0",
        "incarnation": 0,
        "partition": 0,
        "from": 0,
        "until": 310,
        "loaded": 194 + 69,
        "filtered": 0,
        "quarantined": 0,
        "undeliverable": 3,
        "lost": 34,
        "removed": 0,
        "pending": 10,
    }
    assert found.partitions[1].loaded == 43


def test_one_batch_alone(warehouse, keys):
    """A batch is proven from its own ranges and rows."""
    run(warehouse, "DELETE FROM orders WHERE _kafka_offset = 240")
    assert verify(warehouse, batch=keys[0]).ok
    assert [one.until_offset for one in verify(warehouse, batch=keys[0]).partitions] == [200, 50]
    assert "68" in verify(warehouse, batch=keys[1]).problems[0]
    assert verify(warehouse, batch=keys[2]).partitions[0].pending == 10


@pytest.mark.usefixtures("keys")
def test_unknown_batches_and_streams(warehouse):
    """An unknown batch is an error; a stream that was never planned is covered."""
    with pytest.raises(BatchUnknownError):
        verify(warehouse, batch="20200101T000000000Z")
    with warehouse.reading() as con:
        assert coverage.verify(con, "unknown", support.RAW).ok
    assert coverage.verify(None, support.STREAM, support.RAW) == coverage.Verification(True, (), ())
    with pytest.raises(BatchUnknownError):
        coverage.verify(None, support.STREAM, support.RAW, batch="x")


@pytest.mark.usefixtures("keys")
def test_a_table_that_is_gone(warehouse):
    """A dropped table is told as such."""
    run(warehouse, "DROP TABLE orders")
    with pytest.raises(WarehouseInvalidError, match="is gone"):
        verify(warehouse)


SUM_DIFFERS = "the offsets in the table sum up to another number than those fetched."
DIGEST_DIFFERS = "a key or value in the table is not what was fetched (the digests differ)."
SEAL_BROKEN = "what the ledger says of it was changed since its commit (its seal is broken)."
OUTCOME = "UPDATE kafka_assets_ledger.offset_ranges SET {0} WHERE batch = '{{1}}'"
TAMPERINGS = {
    "a row deleted": (
        "DELETE FROM orders WHERE _kafka_offset = 100",
        ["batch {0}, orders[0] [0, 200): the ledger counts 194 rows, the table has 193."],
    ),
    "a row doubled": (
        "INSERT INTO orders FROM orders WHERE _kafka_offset = 100",
        [
            "batch {0}, orders[0] [0, 200): the ledger counts 194 rows, the table has 195.",
            "batch {0}, orders[0] [0, 200): 1 of the table's 195 rows have an offset that another has.",
        ],
    ),
    "a row in the place of another": (
        "UPDATE orders SET _kafka_offset = 101 WHERE _kafka_offset = 100",
        ["batch {0}, orders[0] [0, 200): 1 of the table's 194 rows have an offset that another has."],
    ),
    "a row moved to another batch": (
        "UPDATE orders SET _kafka_batch = '{1}' WHERE _kafka_offset = 100",
        [
            "batch {0}, orders[0] [0, 200): the ledger counts 194 rows, the table has 193.",
            "batch {1}, orders[0] [230, 300): the ledger counts 69 rows, the table has 70.",
            "batch {1}, orders[0] [230, 300): the table has rows outside of it, from offset 100 to 298.",
        ],
    ),
    "a row of a batch not committed": (
        "UPDATE orders SET _kafka_batch = '{2}' WHERE _kafka_offset = 298",
        [
            "batch {1}, orders[0] [230, 300): the ledger counts 69 rows, the table has 68.",
            "batch {2}, orders[0] [300, 310): is not committed, yet the table has 1 rows of it.",
        ],
    ),
    "rows of no batch": (
        "UPDATE orders SET _kafka_batch = 'x' WHERE _kafka_offset = 100",
        [
            "batch {0}, orders[0] [0, 200): the ledger counts 194 rows, the table has 193.",
            "batch x, orders[0]: the table has 1 rows of it, the ledger knows no such range.",
        ],
    ),
    "a row without a batch": (
        "UPDATE orders SET _kafka_batch = NULL WHERE _kafka_offset = 100",
        [
            "table main.orders: 1 rows have no batch, topic, partition or offset.",
            "batch {0}, orders[0] [0, 200): the ledger counts 194 rows, the table has 193.",
        ],
    ),
    "an undeliverable offset made up": (
        "UPDATE orders SET _kafka_offset = 7 WHERE _kafka_offset = 100",
        ["batch {0}, orders[0] [0, 200): " + SUM_DIFFERS],
    ),
    "a value altered": (
        "UPDATE orders SET _kafka_value = 'x' WHERE _kafka_offset = 100",
        ["batch {0}, orders[0] [0, 200): " + DIGEST_DIFFERS],
    ),
    "two values exchanged": (
        (
            "UPDATE orders SET _kafka_value = CASE _kafka_offset WHEN 100 THEN 'v101' ELSE 'v100' END::BLOB"
            " WHERE _kafka_offset IN (100, 101)"
        ),
        ["batch {0}, orders[0] [0, 200): " + DIGEST_DIFFERS],
    ),
    "a dropped record declared undeliverable": (
        (
            "DELETE FROM orders WHERE _kafka_offset = 100; UPDATE kafka_assets_ledger.offset_ranges"
            " SET loaded = loaded - 1, undeliverable = undeliverable + 1"
            " WHERE batch = '{0}' AND partition = 0"
        ),
        [
            "batch {0}: batches counts 237 rows, its ranges 236.",
            "batch {0}, orders[0] [0, 200): " + SUM_DIFFERS,
            "batch {0}, orders[0] [0, 200): " + SEAL_BROKEN,
        ],
    ),
    "an outcome changed": (
        "UPDATE kafka_assets_ledger.offset_ranges SET undeliverable = 3 WHERE batch = '{1}'",
        [
            "orders[0] [0, 310) of incarnation 0: the classes hold 312 offsets of 310.",
            "batch {1}, orders[0] [230, 300): its classes hold 72 offsets of 70.",
            "batch {1}, orders[0] [230, 300): " + SEAL_BROKEN,
        ],
    ),
    "a negative class": (
        "UPDATE kafka_assets_ledger.offset_ranges SET filtered = 2, undeliverable = -1 WHERE batch = '{1}'",
        [
            "batch {1}, orders[0] [230, 300): a class is negative.",
            "batch {1}, orders[0] [230, 300): " + SEAL_BROKEN,
        ],
    ),
    "an outcome missing": (
        "UPDATE kafka_assets_ledger.batches SET state = 'committed' WHERE batch = '{2}'",
        [
            "orders[0] [0, 310) of incarnation 0: the classes hold 300 offsets of 310.",
            "batch {2}, orders[0] [300, 310): is committed, but the ledger has no outcome for it.",
        ],
    ),
    "a range shortened": (
        (
            "UPDATE kafka_assets_ledger.offset_ranges SET until_offset = 199"
            " WHERE batch = '{0}' AND partition = 0"
        ),
        [
            "the skipped stretch, orders[0] [200, 230) of incarnation 0: leaves a gap after offset 199.",
            "batch {0}, orders[0] [0, 199): its classes hold 200 offsets of 199.",
            "batch {0}, orders[0] [0, 199): " + SEAL_BROKEN,
            "batch {0}, orders[0] [0, 199): the table has rows outside of it, from offset 4 to 199.",
        ],
    ),
    "a range gone": (
        "DELETE FROM kafka_assets_ledger.offset_ranges WHERE batch = '{0}' AND partition = 0",
        [
            "orders[0] [0, 310) of incarnation 0: the classes hold 110 offsets of 310.",
            "the skipped stretch, orders[0] [200, 230) of incarnation 0: leaves a gap after offset 0.",
            "batch {0}, orders[0]: the table has 194 rows of it, the ledger knows no such range.",
            "batch {0}: batches counts 237 rows, its ranges 43.",
            "batch {0}, orders[0]: losses has [0, 4), which is not within it.",
        ],
    ),
    "a batch's row count changed": (
        "UPDATE kafka_assets_ledger.batches SET \"rows\" = 70 WHERE batch = '{1}'",
        ["batch {1}: batches counts 70 rows, its ranges 69."],
    ),
    "a batch taken back": (
        "UPDATE kafka_assets_ledger.batches SET state = 'planned' WHERE batch = '{1}'",
        [
            "orders[0] [0, 310) of incarnation 0: the classes hold 380 offsets of 310.",
            "batch {1}, orders[0]: has outcomes, and its batch is planned.",
            "batch {1}, orders[0] [230, 300): is not committed, yet the table has 69 rows of it.",
        ],
    ),
    "a batch without ranges": (
        (
            "INSERT INTO kafka_assets_ledger.batches"
            " SELECT * REPLACE ('x' AS batch) FROM kafka_assets_ledger.batches WHERE batch = '{2}'"
        ),
        ["batch x: has no ranges."],
    ),
    "a batch gone": (
        "DELETE FROM kafka_assets_ledger.batches WHERE batch = '{2}'",
        [
            "orders[0] [0, 310) of incarnation 0: the classes hold 300 offsets of 310.",
            (
                "batch {1}, orders[0] [230, 300) of incarnation 0: is the last one planned,"
                " but the plan ends at offset 310."
            ),
            "batch {2}, orders[0]: is a range of a batch that the ledger does not have.",
        ],
    ),
    "a batch doubled": (
        "INSERT INTO kafka_assets_ledger.batches FROM kafka_assets_ledger.batches WHERE batch = '{2}'",
        [
            "orders[0] [0, 310) of incarnation 0: the classes hold 320 offsets of 310.",
            "batch {2}, orders[0] [300, 310) of incarnation 0: overlaps what ends at offset 310.",
            "batch {2}: batches has 2 rows of it.",
        ],
    ),
    "a position doubled": (
        "INSERT INTO kafka_assets_ledger.positions FROM kafka_assets_ledger.positions WHERE partition = 1",
        ["orders[1]: positions has 2 rows of incarnation 0."],
    ),
    "a stream doubled": (
        "INSERT INTO kafka_assets_ledger.streams FROM kafka_assets_ledger.streams",
        ["stream orders: streams has 2 rows of it."],
    ),
    "a range of another topic": (
        "UPDATE kafka_assets_ledger.offset_ranges SET topic_id = 'id-1' WHERE batch = '{1}'",
        [
            "batch {1}, orders[0] [230, 300): " + SEAL_BROKEN,
            "batch {1}, orders[0]: is of topic id id-1, its incarnation 0 of id-0.",
        ],
    ),
    "a loss moved": (
        "UPDATE kafka_assets_ledger.losses SET from_offset = 300, until_offset = 304 WHERE batch = '{0}'",
        ["batch {0}, orders[0]: losses has [300, 304), which is not within it."],
    ),
    "a removal made up": (
        "UPDATE kafka_assets_ledger.offset_ranges SET undeliverable = 0, removed = 1 WHERE batch = '{1}'",
        [
            "batch {1}, orders[0] [230, 300): " + SEAL_BROKEN,
            "batch {1}, orders[0]: 1 rows count as removed, and no removal holds for its batch.",
        ],
    ),
    "a position moved": (
        "UPDATE kafka_assets_ledger.positions SET planned_until = 60 WHERE partition = 1",
        [
            "orders[1] [5, 60) of incarnation 0: the classes hold 45 offsets of 55.",
            (
                "batch {0}, orders[1] [5, 50) of incarnation 0: is the last one planned,"
                " but the plan ends at offset 60."
            ),
        ],
    ),
    "a position gone": (
        "DELETE FROM kafka_assets_ledger.positions WHERE partition = 1",
        ["batch {0}, orders[1] [5, 50) of incarnation 0: the ledger has no position for it."],
    ),
    "a loss gone": (
        "DELETE FROM kafka_assets_ledger.losses WHERE batch = '{0}'",
        ["batch {0}, orders[0] [0, 200): 4 offsets count as lost, 0 are written down in losses."],
    ),
    "a record in quarantine that does not count": (
        (
            "INSERT INTO kafka_assets_ledger.quarantine BY NAME"
            " SELECT 'orders' AS stream, 'orders' AS _kafka_topic, 0 AS _kafka_partition,"
            " 7 AS _kafka_offset, '{0}' AS _kafka_batch, now() AS _ingested_at,"
            " 'decode' AS stage, 'bad' AS error"
        ),
        ["batch {0}, orders[0] [0, 200): 0 records count as quarantined, the quarantine holds 1."],
    ),
    **{
        what: (OUTCOME.format(changes), ["batch {1}, orders[0] [230, 300): " + SEAL_BROKEN])
        for what, changes in {
            "an undeliverable offset declared filtered": "undeliverable = 0, filtered = 1",
            "other bytes": "bytes = bytes - 1",
            "a gap taken away": "gaps = 0",
            "an end proven otherwise": "end_proof = 'eof'",
            "another time of the first record": "min_timestamp = min_timestamp - INTERVAL 1 DAY",
            "another time of the last record": "max_timestamp = NULL",
            "a digest forgotten": "digest = NULL, digest_function = NULL",
            "a topic id forgotten": "topic_id = NULL",
            "another leader epoch": "leader_epoch = leader_epoch + 1",
            "a seal taken away": "seal = NULL",
        }.items()
    },
    "lost offsets declared undeliverable, and their loss taken away": (
        (
            "UPDATE kafka_assets_ledger.offset_ranges SET lost = 0, undeliverable = undeliverable + lost"
            " WHERE batch = '{0}'; DELETE FROM kafka_assets_ledger.losses WHERE batch = '{0}'"
        ),
        ["batch {0}, orders[0] [0, 200): " + SEAL_BROKEN],
    ),
    "undeliverable offsets declared lost, and a loss made up": (
        (
            "UPDATE kafka_assets_ledger.offset_ranges SET lost = 1, undeliverable = 0 WHERE batch = '{1}';"
            " INSERT INTO kafka_assets_ledger.losses SELECT * REPLACE ('{1}' AS batch, 299 AS from_offset,"
            " 300 AS until_offset) FROM kafka_assets_ledger.losses WHERE batch = '{0}'"
        ),
        ["batch {1}, orders[0] [230, 300): " + SEAL_BROKEN],
    ),
    "an undeliverable offset declared removed, and a removal made up": (
        (
            "UPDATE kafka_assets_ledger.offset_ranges SET removed = 1, undeliverable = 0 WHERE batch = '{1}';"
            " INSERT INTO kafka_assets_ledger.removals VALUES ('orders', 'false', '{1}', now())"
        ),
        ["batch {1}, orders[0] [230, 300): " + SEAL_BROKEN],
    ),
    "a record dropped, declared filtered and counted so": (
        (
            "DELETE FROM orders WHERE _kafka_offset = 298; UPDATE kafka_assets_ledger.offset_ranges"
            " SET loaded = loaded - 1, filtered = filtered + 1 WHERE batch = '{1}';"
            ' UPDATE kafka_assets_ledger.batches SET "rows" = "rows" - 1 WHERE batch = \'{1}\''
        ),
        ["batch {1}, orders[0] [230, 300): " + SEAL_BROKEN],
    ),
    "the seal of another range": (
        (
            "UPDATE kafka_assets_ledger.offset_ranges SET seal = (SELECT seal FROM"
            " kafka_assets_ledger.offset_ranges WHERE batch = '{0}' AND partition = 0) WHERE batch = '{1}'"
        ),
        ["batch {1}, orders[0] [230, 300): " + SEAL_BROKEN],
    ),
}


@pytest.mark.parametrize("what", TAMPERINGS)
@pytest.mark.parametrize("cells", [coverage.CELLS_AT_ONCE, 1])
def test_tampering_is_found_and_named(warehouse, keys, what, cells, monkeypatch):
    """Whatever is changed by hand, the proof fails and names batch and range, in blocks too."""
    monkeypatch.setattr(coverage, "CELLS_AT_ONCE", cells)
    statement, said = TAMPERINGS[what]
    run(warehouse, statement.format(*keys))
    found = verify(warehouse)
    assert not found.ok
    assert sorted(found.problems) == sorted(sentence.format(*keys) for sentence in said)


@pytest.mark.usefixtures("keys")
def test_digests_of_another_function_are_not_compared(warehouse):
    """A digest of another DuckDB version proves nothing and disproves nothing; the rest is still compared."""
    old = ledger_sql.settled({"digest": "1::HUGEINT", "digest_function": "'duckdb.hash/0.1'"})
    run(warehouse, f"UPDATE kafka_assets_ledger.offset_ranges AS planned {old} WHERE loaded IS NOT NULL")
    assert verify(warehouse).ok


@pytest.fixture
def unsealed(warehouse, keys):
    """The warehouse as the version before the seals wrote it."""
    run(
        warehouse,
        "ALTER TABLE kafka_assets_ledger.offset_ranges DROP COLUMN seal;"
        "UPDATE kafka_assets_ledger.meta SET schema_version = 1",
    )
    return keys


@pytest.mark.usefixtures("unsealed")
def test_a_ledger_without_seals_is_proven_without_them(warehouse):
    """An older ledger is read as it is, and nothing is written for it."""
    found = verify(warehouse)
    assert (found.ok, found.problems) == (True, ())
    assert version_of(warehouse) == 1


def test_a_commit_seals_an_older_ledger(warehouse, unsealed):
    """With the first change of a ledger what was committed before is sealed too, in the same transaction."""
    commit(warehouse, unsealed[2], [staged_of(OPEN)])
    assert version_of(warehouse) == 2
    assert verify(warehouse).ok
    run(warehouse, OUTCOME.format("undeliverable = 0, filtered = 1").format(*unsealed))
    assert verify(warehouse).problems == (f"batch {unsealed[1]}, orders[0] [230, 300): {SEAL_BROKEN}",)


@pytest.mark.usefixtures("unsealed")
def test_a_plan_seals_an_older_ledger(warehouse):
    """A plan brings an older ledger up to date as well."""
    more = [planned("orders", 0, 310, 320)]
    record(warehouse, plan_of(state_of(warehouse).positions, more), version=3)
    assert version_of(warehouse) == 2
    assert verify(warehouse).ok


def test_a_replay_seals_again(warehouse, keys):
    """A replay's outcome has a seal of its own; that of the ranges beside it stays."""
    commit(
        warehouse, keys[1], [staged_of(SECOND, missing={250})], generation=1, scope=ReplayScope(merge=True)
    )
    assert verify(warehouse).ok


def version_of(warehouse):
    with warehouse.reading() as con:
        return ledger.schema_version(con)


def test_distinct_offsets_at_the_edges_of_blocks(warehouse):
    """Offsets around multiples of 64 and beyond 32 bits are told apart."""
    part = [planned("orders", 0, 2**40 - 70, 2**40 + 70)]
    (key,) = record(warehouse, plan_of({}, part), version=0)
    commit(warehouse, key, [staged_of(part)])
    assert verify(warehouse).ok
    run(warehouse, "UPDATE orders SET _kafka_offset = 1099511627776 WHERE _kafka_offset = 1099511627839")
    assert "offset that another has" in verify(warehouse).problems[0]
