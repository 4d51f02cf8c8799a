"""kill -9 at any moment: what was said to be in the file is there, and rows, quarantine and ledger agree."""

from __future__ import annotations

import multiprocessing
import random

import pytest

from kafka_assets import coverage, ledger
from kafka_assets_tests import warehouse_support as support

spawn = multiprocessing.get_context("spawn")


@pytest.mark.parametrize(
    ("size", "value_bytes"),
    [pytest.param(40, 0, id="few"), pytest.param(20_000, 0, id="many"), pytest.param(40, 4096, id="large")],
)
def test_a_killed_writer_leaves_rows_and_ledger_in_agreement(tmp_path, size, value_bytes):
    """A process that plans, commits and replays is killed at random moments; each time all of it holds.

    A fifth of the records is bad: they are in quarantine when the others are in the table, or neither is.
    """
    warehouse = support.warehouse_at(tmp_path)
    choice = random.Random(size)  # noqa: S311  moments, not secrets
    planned, committed = set(), set()
    for _ in range(6):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(
            target=support.plan_and_commit_for_ever, args=(tmp_path, size, value_bytes, theirs)
        )
        process.start()
        theirs.close()
        for _ in range(choice.randrange(1, 7)):
            _note(ours.recv(), planned, committed)
        # Somewhere into what follows the last word: a transaction takes some milliseconds.
        ours.poll(choice.uniform(0, 0.05))
        support.kill(process.pid)
        process.join()
        while True:
            try:
                _note(ours.recv(), planned, committed)
            except EOFError:
                break
        with warehouse.reading() as con:
            found = coverage.verify(con, support.STREAM, support.RAW)
            set_aside = ledger.count_quarantined(con, support.STREAM)
            batches = dict(con.execute("SELECT batch, state FROM kafka_assets.batches").fetchall())
        assert found.problems == ()
        assert sum(one.quarantined for one in found.partitions) == set_aside
        assert set_aside or not committed
        assert planned <= batches.keys()
        assert {batches[key] for key in committed} <= {"committed"}


def _note(word, planned, committed):
    kind, key = word
    (planned if kind == "planned" else committed).add(key)
