from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest

from kafka_assets.orchestration import liveness
from kafka_assets_tests.orchestration.support import STREAM, later
from kafka_assets_tests.support.kafka import values

HOUR, DAY = 3600, 86_400


def test_the_sensor_sweeps_once_an_hour_what_nobody_needs(bench, topic, produce, monkeypatch):
    """Files of a generation that has moved on go, and those a day old; not what a run may still commit."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    (request,) = here.tick().requests
    assert here.run(request).is_success
    committed = here.warehouse.staging / STREAM / str(request.partition_key)
    produce(name, values(5))
    (planned,) = here.tick().batches
    pending = here.warehouse.staging / STREAM / planned
    unknown = here.warehouse.staging / STREAM / "20200101T000000000Z"
    for folder in (committed, pending, unknown):
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("0-run-0", "0-run-0.tmp", "1-run-0"):
            (folder / file).write_bytes(b"x")
            moment = datetime.now(UTC).timestamp() + HOUR / 2
            os.utime(folder / file, (moment, moment))

    def left() -> dict[str, list[str]]:
        folders = (committed, pending, unknown)
        return {folder.name: sorted(file.name for file in folder.glob("*-run-*")) for folder in folders}

    everything = ["0-run-0", "0-run-0.tmp", "1-run-0"]
    later(monkeypatch, HOUR - 60)
    here.tick()
    assert set(map(tuple, left().values())) == {tuple(everything)}
    later(monkeypatch, HOUR + 60)
    here.tick()
    assert left() == {committed.name: ["1-run-0"], pending.name: everything, unknown.name: everything}
    assert liveness.hold(here.warehouse, STREAM, planned)
    later(monkeypatch, DAY + HOUR)
    here.tick()
    liveness.release(STREAM, planned)
    assert left() == {committed.name: [], pending.name: everything, unknown.name: []}
    assert not committed.exists()


@pytest.mark.parametrize("beside", [True, False])
def test_finishing_a_batch_removes_its_lock_and_its_empty_folder(bench, topic, beside):
    """The folder stays where something else is in it; the batch can be taken up again either way."""
    here = bench(topics=[topic()])
    folder = here.warehouse.staging / STREAM / "key"
    assert liveness.hold(here.warehouse, STREAM, "key")
    if beside:
        (folder / "0-other-0").write_bytes(b"x")

    liveness.finish(STREAM, "key")
    liveness.finish(STREAM, "key")

    assert not (folder / "lock").exists()
    assert folder.exists() is beside
    assert liveness.hold(here.warehouse, STREAM, "key")
    liveness.finish(STREAM, "key")
