"""What goes wrong around a commit: its outcome is not known, or what was staged is not what was fetched."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import duckdb
import pytest

from kafka_assets import commits, ledger
from kafka_assets.orchestration import assets
from kafka_assets.orchestration import ingest as ingesting
from kafka_assets.staging import discard
from kafka_assets.warehouse import Warehouse
from kafka_assets_tests.faults.story import expected
from kafka_assets_tests.support.kafka import delete_records, values


class Unanswered:
    """A connection whose next COMMIT, if one is awaited, ends with an error: before or after it took place."""

    def __init__(self, connection, awaited):
        self._connection = connection
        self._awaited = awaited

    def execute(self, statement, *arguments):
        """Run a statement, or fail."""
        if statement != "COMMIT" or not self._awaited:
            return self._connection.execute(statement, *arguments)
        if self._awaited.pop() == "after":
            self._connection.execute("COMMIT")
        raise duckdb.FatalException("FATAL Error: the database has been invalidated")


@pytest.fixture
def unanswered(monkeypatch):
    """`unanswered(module, function, when)`: the first transaction that calls it gets no answer to its COMMIT."""

    def arm(module, function, when):
        left, awaited = [when], []
        work, transaction = getattr(module, function), Warehouse._transaction

        def called(*arguments, **named):
            done = work(*arguments, **named)
            awaited.extend(left)
            left.clear()
            return done

        monkeypatch.setattr(module, function, called)
        monkeypatch.setattr(
            Warehouse, "_transaction", lambda self, given: transaction(self, Unanswered(given, awaited))
        )

    return arm


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_ledger_decides_whether_a_commit_without_an_answer_took_place(
    story, topic, produce, unanswered, when
):
    """If it did, the run ends well, a replay's too; if not, it fails, and the next one loads every row once."""
    name = topic()
    rows = expected(name, produce(name, values(10), 0), values(10))
    story.setting(topics=[name])
    unanswered(commits, "commit_batch", when)
    if when == "before":
        failed = story.ingest(exit_code=1)
        assert failed.code == "RUN_FAILED"
        assert "nothing of it is in the file" in failed.message
        assert story.rows() == []
        assert story.batches() == {"planned": 1, "failed": 1}
    answer = story.ingest()
    assert (answer.stream["batches"], answer.stream["rows"]) == (story.batch_keys(), 10)
    assert story.rows() == rows

    (key,) = story.batch_keys()
    unanswered(commits, "commit_batch", when)
    assert story.command("replay", key).exit_code == (1 if when == "before" else 0)
    assert story.rows() == rows
    assert story.batches() == {"committed": 1}
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 10, "loaded": 10}}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_plan_without_an_answer_is_made_once(story, topic, produce, unanswered, when):
    """The command fails, saying that the ledger knows; the next one runs that plan if it is there, else plans."""
    name = topic()
    rows = expected(name, produce(name, values(10), 0), values(10))
    story.setting(topics=[name])
    unanswered(ledger, "record_plan", when)
    failed = story.ingest(exit_code=1)
    assert failed.code == "RUN_FAILED"
    assert "The ledger in it says whether the transaction is there" in failed.message
    assert story.batches() == ({} if when == "before" else {"planned": 1})

    assert story.ingest().stream["rows"] == 10
    assert story.rows() == rows
    assert story.batches() == {"committed": 1}
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 10, "loaded": 10}}


def in_memory(monkeypatch, size):
    """Keep slices of up to that size in memory, larger ones in files."""
    for module in (assets, ingesting):
        monkeypatch.setattr(module, "MEMORY_BYTES", size, raising=False)


def missing(staged):
    Path(staged.path).unlink()


def short(staged):
    os.truncate(staged.path, staged.size_bytes - 1)


def altered(staged):
    content = bytearray(Path(staged.path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(staged.path).write_bytes(content)


def another_batch_s(staged):
    """What an earlier batch of the same shape had staged."""
    Path(staged.path).write_bytes(another_batch_s.content)


def forgotten(staged):
    """The process that kept it is gone."""
    assert staged.path.startswith("memory:")
    discard(staged)


def test_staged_slices_that_are_damaged_are_fetched_again(story, topic, produce, monkeypatch, caplog):
    """Missing, cut short, altered, another's: the checksum tells, and the rows are those of Kafka."""
    name = topic(2)
    story.setting(topics=[name])
    commit, rows = assets.batches.commit, []

    def damaging(damage):
        def committed(stream, warehouse, batch, staged, **named):
            for one in staged:
                if one.path.startswith("memory:"):
                    forgotten(one)
                    continue
                damage(one)
            return commit(stream, warehouse, batch, staged, **named)

        return committed

    def keep_a_copy(staged):
        another_batch_s.content = Path(staged.path).read_bytes()

    for number, damage in enumerate((keep_a_copy, missing, short, altered, another_batch_s, forgotten)):
        in_memory(monkeypatch, 2**24 if damage is forgotten else 0)
        payloads = values(20, first=100 * number)
        rows += expected(name, produce(name, payloads, number % 2), payloads)
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "kafka_assets.batches"):
            patch.setattr(assets.batches, "commit", damaging(damage))
            caplog.clear()
            assert story.ingest().stream["rows"] == 20
        told = [one for one in caplog.messages if "fetching that slice" in one]
        assert len(told) == (damage is not keep_a_copy)
        assert story.rows() == sorted(rows)
        assert not list((story.file.parent / "w.duckdb.staging").glob("*/*/*"))
    story.proof()


def test_a_staged_slice_that_is_damaged_and_gone_from_kafka_too_is_a_loss(
    story, topic, produce, bootstrap, monkeypatch
):
    """It is DATA_LOST with nothing written, as if it had never been fetched."""
    in_memory(monkeypatch, 0)
    name = topic()
    produce(name, values(10), 0)
    story.setting(topics=[name])
    commit = assets.batches.commit

    def after_retention(stream, warehouse, batch, staged, **named):
        for one in staged:
            altered(one)
        delete_records(bootstrap, name, {0: 4})
        return commit(stream, warehouse, batch, staged, **named)

    with monkeypatch.context() as patch:
        patch.setattr(assets.batches, "commit", after_retention)
        assert story.ingest(exit_code=3).code == "DATA_LOST"
    assert (story.rows(), story.losses()) == ([], [])
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 10, "pending": 10}}
