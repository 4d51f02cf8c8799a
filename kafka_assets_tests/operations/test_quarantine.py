"""Bad records: they stop their batch, or are set aside, accounted for, and decoded again in place."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from kafka_assets import coverage
from kafka_assets.cli.app import run
from kafka_assets.config import load_config
from kafka_assets.formats import Decoded, get_format
from kafka_assets.formats.bad import split
from kafka_assets.formats.utf8 import Utf8Format
from kafka_assets.operations import quarantine as operation
from kafka_assets.warehouse import Warehouse
from kafka_assets_tests.faults.story import STREAM
from kafka_assets_tests.faults.test_timestamps import FIRST_TOO_LARGE
from kafka_assets_tests.support.kafka import Record, delete_records, values
from kafka_assets_tests.test_fetch import produce_header

if TYPE_CHECKING:
    from kafka_assets_tests.faults.story import Answer, Story

BAD = b"caf\xe9 \xff"
NOON = 1_767_268_800_000
WHAT = "its value is not UTF-8: invalid continuation byte at byte 3, where it goes on with e9 20 ff"


class Latin1Format(Utf8Format):
    """Reads what `utf8` cannot: the format mended."""

    fingerprint = "latin1/1"

    def decode(self, batch: pa.RecordBatch) -> Decoded:
        index = batch.schema.get_field_index("_kafka_value")
        texts = [
            None if value is None else value.decode("latin-1") for value in batch.column(index).to_pylist()
        ]
        return Decoded(batch.set_column(index, "value", pa.array(texts, pa.string())))


class OnlyShortFormat(Latin1Format):
    """Reads Latin-1 of less than six bytes."""

    def decode(self, batch: pa.RecordBatch) -> Decoded:
        long = {
            row: "its value is long"
            for row, value in enumerate(batch.column("_kafka_value").to_pylist())
            if value is not None and len(value) > 5
        }
        if not long:
            return super().decode(batch)
        good, bad = split(batch, long)
        return Decoded(super().decode(good).rows, bad)


def command(story: Story, *arguments: str, exit_code: int = 0) -> Answer:
    answer = story.command(*arguments)
    assert answer.exit_code == exit_code, answer
    return answer


def typed(story: Story, *words: str) -> tuple[int, str]:
    """Exit code and stdout of what is typed."""
    out = io.StringIO()
    return run([*words, "--config", str(story.file)], out), out.getvalue()


def quarantine(story: Story, verb: str, exit_code: int = 0) -> dict[str, Any]:
    """The answer of `quarantine VERB` for the stream."""
    code, text = typed(story, "quarantine", verb, STREAM, "--json")
    assert code == exit_code, text
    answer: dict[str, Any] = json.loads(text)["streams"][STREAM]
    return answer


def alter(story: Story, statement: str) -> None:
    with Warehouse.of(load_config(story.file).warehouse).writing() as connection:
        connection.execute(statement).fetchall()


def table(story: Story) -> list[tuple[int, str | None]]:
    """Offset and value of every row."""
    return story.query("SELECT _kafka_offset, value FROM orders ORDER BY ALL")


def aside(story: Story) -> list[tuple[int, bytes]]:
    """Offset and value of every bad record."""
    return story.query("SELECT _kafka_offset, _kafka_value FROM kafka_assets.quarantine ORDER BY ALL")


@pytest.fixture
def loaded(story, topic, produce):
    """Seven records in two batches, those at offsets 1 and 4 bad; returns the topic."""
    name = topic()
    payloads = [b"a", BAD, None, b"d", BAD + b"longer", b"f", b"g"]
    produce(
        name,
        [
            Record(value, key=b"k%d" % at, headers=[("h", b"\xff")], timestamp_ms=NOON + 1000 * at)
            for at, value in enumerate(payloads)
        ],
        0,
    )
    story.setting(topics=[name], format="utf8", on_bad_record="quarantine", max_records_per_batch=4)
    story.ingest()
    return name


def test_a_bad_record_blocks_its_batch_until_it_may_be_set_aside(story, topic, produce):
    """Under `fail` nothing of the batch is loaded and the message says the way; `ingest` then goes on by it."""
    name = topic()
    produce(name, [b"a", BAD, b"c"], 0)
    story.setting(topics=[name], format="utf8", max_records_per_batch=3)
    stopped = story.ingest(exit_code=3)
    assert stopped.code == "BAD_RECORD"
    (key,) = story.batch_keys()
    for said in (f"{name}[0]@1: {WHAT}", key, "`on_bad_record: quarantine`", "`kafka-assets ingest`"):
        assert said in stopped.message
    assert story.batches() == {"planned": 1, "blocked": 1}
    assert table(story) == []
    produce(name, [b"later"], 0)
    assert story.ingest(exit_code=3).code == "BAD_RECORD"
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 4, "loaded": 1, "pending": 3}}

    story.setting(topics=[name], format="utf8", max_records_per_batch=3, on_bad_record="quarantine")
    done = story.ingest()
    assert [done.stream[one] for one in ("records", "rows", "quarantined")] == [3, 2, 1]
    assert table(story) == [(0, "a"), (2, "c"), (3, "later")]
    assert aside(story) == [(1, BAD)]
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 4, "loaded": 3, "quarantined": 1}}
    assert story.batches() == {"committed": 2}
    assert story.query('SELECT records, "rows" FROM kafka_assets.batches ORDER BY batch') == [(3, 2), (1, 1)]


def test_a_replay_of_the_blocked_batch_sets_aside_too(story, topic, produce):
    """The batch alone is run by its key, as a click does."""
    name = topic()
    produce(name, [b"a", BAD], 0)
    story.setting(topics=[name], format="utf8")
    story.ingest(exit_code=3)
    story.setting(topics=[name], format="utf8", on_bad_record="quarantine")
    command(story, "replay", *story.batch_keys())
    assert (table(story), aside(story)) == ([(0, "a")], [(1, BAD)])
    story.proof()


def test_a_batch_of_nothing_but_bad_records_commits(story, topic, produce):
    """No row comes out, every offset is in quarantine, and the stream goes on."""
    name = topic()
    produce(name, [BAD] * 3, 0)
    story.setting(topics=[name], format="utf8", on_bad_record="quarantine")
    story.ingest()
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 3, "quarantined": 3}}


def test_what_is_set_aside_is_told(story, loaded):
    """`list` tells place, batch and error, `show` also what is in the record; the view has all of it."""
    first, second = story.batch_keys()
    listed = quarantine(story, "list")
    assert listed["error"] is None
    expected = {
        "topic": loaded,
        "partition": 0,
        "offset": 1,
        "timestamp": "2026-01-01T12:00:01+00:00",
        "batch": first,
        "stage": "decode",
        "error": WHAT,
        "size": len(BAD),
    }
    assert listed["records"][0].items() >= expected.items()
    assert [(one["offset"], one["batch"]) for one in listed["records"]] == [(1, first), (4, second)]
    (shown, _) = quarantine(story, "show")["records"]
    assert shown.items() >= expected.items()
    assert base64.b64decode(shown["value"]) == BAD
    assert base64.b64decode(shown["key"]) == b"k1"
    assert shown["headers"] == [{"key": "h", "value": "/w=="}]
    assert story.query(
        "SELECT stream, _kafka_key, _kafka_headers, _kafka_timestamp_type FROM kafka_assets.quarantine LIMIT 1"
    ) == [(STREAM, b"k1", [{"key": "h", "value": b"\xff"}], "create")]
    code, text = typed(story, "quarantine", "list", STREAM)
    assert code == 0
    assert "2 records in quarantine" in text
    code, text = typed(story, "quarantine", "show")
    assert code == 0
    assert repr(BAD) in text
    assert story.command("status").stream["quarantined"] == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [([], "USAGE_INVALID"), (["burn"], "USAGE_INVALID"), (["show", "nobody"], "STREAM_UNKNOWN")],
)
def test_what_cannot_be_meant_is_refused(story, words, code):
    """Without a verb, with an unknown one or for an unknown stream: exit 2."""
    story.setting(topics=["orders"])
    exit_code, text = typed(story, "quarantine", *words, "--json")
    assert (exit_code, json.loads(text)["error"]["code"]) == (2, code)


def test_nothing_is_in_quarantine_before_anything_was_planned(story):
    """Without a warehouse the lists are empty, and a retry has nothing to do."""
    story.setting(topics=["orders"])
    assert quarantine(story, "list") == {"records": [], "error": None}
    assert quarantine(story, "show") == {"records": [], "error": None}
    assert quarantine(story, "retry") == {"loaded": 0, "removed": 0, "quarantined": 0, "error": None}


def test_a_replay_replaces_the_quarantine_of_its_ranges_alone(story, loaded):
    """Bad records are fetched again with the rows, none twice, and those of other batches stay as they are."""
    first, _ = story.batch_keys()
    before = story.query("SELECT _kafka_offset, _ingested_at FROM kafka_assets.quarantine ORDER BY 1")
    command(story, "replay", first)
    after = story.query("SELECT _kafka_offset, _ingested_at FROM kafka_assets.quarantine ORDER BY 1")
    assert [offset for offset, _ in after] == [1, 4]
    assert after[0][1] > before[0][1]
    assert after[1] == before[1]
    assert story.proof() == {(loaded, 0, 0): {"from": 0, "until": 7, "loaded": 5, "quarantined": 2}}


def test_a_replay_never_loses_what_is_set_aside(story, loaded, bootstrap):
    """Where Kafka has a bad record no more the replay is refused; `--merge` keeps it and replaces the others."""
    first, _ = story.batch_keys()
    delete_records(bootstrap, loaded, {0: 2})
    before = table(story), aside(story)
    assert command(story, "replay", first, exit_code=3).code == "RANGE_UNAVAILABLE"
    assert (table(story), aside(story)) == before
    command(story, "replay", first, "--merge")
    assert (table(story), aside(story)) == before
    assert story.proof() == {(loaded, 0, 0): {"from": 0, "until": 7, "loaded": 5, "quarantined": 2}}


def test_a_retry_loads_what_decodes_now(story, loaded, monkeypatch):
    """Nothing changes while it is as bad as before; with the format mended each is a row of its batch and offset."""
    keys = story.batch_keys()
    still = quarantine(story, "retry", exit_code=3)
    assert still["error"]["code"] == "BAD_RECORD"
    assert f"{loaded}[0]@1: {WHAT}" in still["error"]["message"]
    assert (still["loaded"], still["quarantined"]) == (0, 2)
    assert aside(story) == [(1, BAD), (4, BAD + b"longer")]

    monkeypatch.setattr(operation, "get_format", lambda _: OnlyShortFormat())
    some = quarantine(story, "retry", exit_code=3)
    assert (some["loaded"], some["quarantined"], "its value is long" in some["error"]["message"]) == (
        0,
        2,
        True,
    )
    assert {one["error"] for one in quarantine(story, "list")["records"]} == {"its value is long"}
    story.proof()

    monkeypatch.setattr(operation, "get_format", lambda _: Latin1Format())
    done = quarantine(story, "retry")
    assert (done["loaded"], done["removed"], done["quarantined"], done["error"]) == (2, 0, 0, None)
    assert aside(story) == []
    assert table(story)[1] == (1, "café ÿ")
    rows = story.query("SELECT _kafka_offset, _kafka_batch, _kafka_key FROM orders ORDER BY 1")
    assert [rows[1], rows[4]] == [(1, keys[0], b"k1"), (4, keys[1], b"k4")]
    assert story.proof() == {(loaded, 0, 0): {"from": 0, "until": 7, "loaded": 7}}
    assert story.query('SELECT "rows" FROM kafka_assets.batches ORDER BY batch') == [(4,), (3,)]
    assert quarantine(story, "retry")["loaded"] == 0


def test_a_retry_that_decodes_some_leaves_the_others(story, topic, produce, monkeypatch):
    """One batch, one transaction: what decodes is loaded, what does not stays with its new reason."""
    name = topic()
    produce(name, [b"\xff", BAD, b"\xfe"], 0)
    story.setting(topics=[name], format="utf8", on_bad_record="quarantine")
    story.ingest()
    monkeypatch.setattr(operation, "get_format", lambda _: OnlyShortFormat())
    some = quarantine(story, "retry", exit_code=3)
    assert (some["loaded"], some["quarantined"]) == (2, 1)
    assert (table(story), aside(story)) == ([(0, "ÿ"), (2, "þ")], [(1, BAD)])
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 3, "loaded": 2, "quarantined": 1}}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("UPDATE {q} SET _kafka_value = 'x'::BLOB WHERE _kafka_offset = 1", "the digests differ"),
        ("UPDATE {q} SET _kafka_key = NULL WHERE _kafka_offset = 1", "the digests differ"),
        ("UPDATE {q} SET _kafka_offset = 2 WHERE _kafka_offset = 1", "sum up to another number"),
        ("UPDATE {q} SET _kafka_offset = 9 WHERE _kafka_offset = 4", "has rows outside of it"),
        ("DELETE FROM {q} WHERE _kafka_offset = 1", "1 records count as quarantined, the quarantine holds 0"),
        ("INSERT INTO {q} FROM {q} WHERE _kafka_offset = 1", "the quarantine holds 2"),
        (
            "UPDATE {q} SET _kafka_batch = '20200101T000000000Z' WHERE _kafka_offset = 1",
            "the quarantine has 1 records of it, the ledger knows no such range",
        ),
        ("DELETE FROM orders WHERE _kafka_offset = 0", "the ledger counts 3 rows, the table has 2"),
        (
            "INSERT INTO orders BY NAME SELECT * EXCLUDE (stream, stage, error, _kafka_value) FROM {q}",
            "the ledger counts 3 rows, the table has 4",
        ),
    ],
)
def test_tampering_with_the_quarantine_is_found(story, loaded, what, said):
    """Whatever is changed in it, or traded between it and the table, the proof fails and says where."""
    alter(story, what.format(q="kafka_assets_ledger.quarantine"))
    answer = command(story, "verify", exit_code=1)
    assert answer.code == "PROOF_FAILED"
    problems = answer.stream["problems"]
    assert any(said in one for one in problems), problems
    assert any(f"{loaded}[0]" in one for one in problems)


def test_a_deep_verification_compares_the_quarantine_too(story, loaded):
    """Bad records are as Kafka has them; one that is altered where no digest looks, or missing, is named."""
    deep = command(story, "verify", "--deep")
    assert (deep.stream["compared"], deep.stream["problems"]) == (7, [])
    alter(story, "UPDATE kafka_assets_ledger.quarantine SET _kafka_headers = NULL WHERE _kafka_offset = 1")
    (problem,) = command(story, "verify", "--deep", exit_code=1).stream["problems"]
    assert f"{loaded}[0]@1 " in problem
    assert "_kafka_headers in the quarantine is not what Kafka has" in problem
    alter(story, "DELETE FROM kafka_assets_ledger.quarantine WHERE _kafka_offset = 4")
    problems = command(story, "verify", "--deep", exit_code=1).stream["problems"]
    assert any(f"{loaded}[0]@4 " in one and "the quarantine has no row of it" in one for one in problems)


def test_what_is_removed_by_its_metadata_leaves_the_quarantine_too(story, loaded, monkeypatch):
    """By time or key a bad record is removed as a row is, counted so, and no replay or retry brings it back."""
    shown = command(story, "expire", "--before", "2026-01-01T12:00:03Z", exit_code=2)
    assert shown.stream["removed"] == 3
    done = command(story, "expire", "--before", "2026-01-01T12:00:03Z", "--yes")
    assert done.stream["removed"] == 3
    assert aside(story) == [(4, BAD + b"longer")]
    proof = {(loaded, 0, 0): {"from": 0, "until": 7, "loaded": 3, "quarantined": 1, "removed": 3}}
    assert story.proof() == proof
    command(story, "replay", *story.batch_keys())
    assert story.proof() == proof
    assert command(story, "verify", "--deep").stream["problems"] == []
    monkeypatch.setattr(operation, "get_format", lambda _: Latin1Format())
    assert quarantine(story, "retry")["loaded"] == 1
    proof = {(loaded, 0, 0): {"from": 0, "until": 7, "loaded": 4, "removed": 3}}
    assert story.proof() == proof


def test_what_is_removed_by_its_value_is_seen_once_it_is_decoded(story, loaded, monkeypatch):
    """Of undecoded bytes nobody knows whether they match: they stay, and a retry books those that do as removed."""
    done = command(story, "expire", "--where", "value LIKE 'caf%' OR value IS NULL", "--yes")
    assert done.stream["removed"] == 1
    assert len(aside(story)) == 2
    story.proof()
    monkeypatch.setattr(operation, "get_format", lambda _: Latin1Format())
    retried = quarantine(story, "retry")
    assert (retried["loaded"], retried["removed"], retried["quarantined"]) == (0, 2, 0)
    assert story.proof() == {(loaded, 0, 0): {"from": 0, "until": 7, "loaded": 4, "removed": 3}}


def test_a_renamed_stream_keeps_its_quarantine(story, loaded):
    """The proof of the new name holds, and nothing is left of the old."""
    del loaded
    document = json.loads(story.file.read_text())
    document["streams"]["sales"] = document["streams"].pop(STREAM)
    story.file.write_text(json.dumps(document))
    assert typed(story, "rename", STREAM, "sales")[0] == 0
    assert Counter(story.query("SELECT stream FROM kafka_assets.quarantine")) == {("sales",): 2}
    config = load_config(story.file)
    with Warehouse.of(config.warehouse).reading() as connection:
        columns = get_format(config.stream("sales").format).columns
        assert coverage.verify(connection, "sales", columns).problems == ()


def test_a_reset_of_an_overtaken_batch_sets_aside_what_is_left(story, topic, produce, bootstrap):
    """What is gone is lost, what is left is loaded or in quarantine."""
    name = topic()
    produce(name, [b"a", b"b", BAD, b"d"], 0)
    story.setting(topics=[name], format="utf8", on_bad_record="quarantine")
    story.tick()
    delete_records(bootstrap, name, {0: 1})
    assert story.ingest(exit_code=3).code == "DATA_LOST"
    command(story, "reset", "--to", "earliest", "--yes")
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 4, "loaded": 2, "quarantined": 1, "lost": 1}}


def test_large_slices_go_through_files(story, topic, produce, monkeypatch):
    """Rows and bad records that pass the memory there is are staged in files, and nothing of them is left."""
    monkeypatch.setattr("kafka_assets.orchestration.assets.MEMORY_BYTES", 0)
    name = topic(partitions=2)
    payloads = [value for one in values(50) for value in (one, BAD)]
    for partition in range(2):
        produce(name, payloads, partition)
    story.setting(topics=[name], format="utf8", on_bad_record="quarantine")
    story.ingest()
    assert sum(one["quarantined"] for one in story.proof().values()) == 100
    staging = load_config(story.file).warehouse.staging
    assert [file.name for file in staging.rglob("*-bad*")] == []


def test_what_cannot_be_fetched_whole_is_set_aside_too(story, topic, produce, bootstrap, monkeypatch):
    """A time that no column holds and a header key that is no text: NULL in quarantine, and no retry loads them."""
    name = topic(config={"message.timestamp.after.max.ms": str(2**63 - 1)})
    produce(name, [Record(b"a"), Record(b"b", timestamp_ms=FIRST_TOO_LARGE), Record(BAD)], 0)
    produce_header(bootstrap, name, b"bad\xff")
    produce(name, [b"c"], 0)
    story.setting(topics=[name], format="utf8")
    assert story.ingest(exit_code=3).code == "BAD_RECORD"
    story.setting(topics=[name], format="utf8", on_bad_record="quarantine")
    story.ingest()
    assert table(story) == [(0, "a"), (4, "c")]
    assert aside(story) == [(1, b"b"), (2, BAD), (3, b"x")]
    records = quarantine(story, "list")["records"]
    assert [one["stage"] for one in records] == ["fetch", "decode", "fetch"]
    assert [one["timestamp"] is None for one in records] == [True, False, False]
    assert f"its timestamp of {FIRST_TOO_LARGE} ms" in records[0]["error"]
    assert "key of one of its headers" in records[2]["error"]
    proof = {(name, 0, 0): {"from": 0, "until": 5, "loaded": 2, "quarantined": 3}}
    assert story.proof() == proof
    assert command(story, "verify", "--deep").stream["problems"] == []
    command(story, "replay", *story.batch_keys())
    assert story.proof() == proof
    monkeypatch.setattr(operation, "get_format", lambda _: Latin1Format())
    assert [quarantine(story, "retry", exit_code=3)[one] for one in ("loaded", "quarantined")] == [1, 2]
    story.proof()
