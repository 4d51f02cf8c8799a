"""The Receiver with and without its log beside the direct way: bytes, throughput, and what kills do."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.data import PARTITIONS, Dataset, fill
from benchmarks.environments import say
from benchmarks.folders import environment, scratch
from benchmarks.machine import machine
from benchmarks.measure import measure
from benchmarks.receiver import trial
from benchmarks.receiver.program import AUTO_COMMIT_SECONDS, BATCH_SECONDS, BLOCK_SECONDS
from benchmarks.systems import OURS, ingest_command, ingest_folder, own_modules
from kafka_assets.dev.broker import LocalKafka
from kafka_assets.dev.topics import create_topic

HERE = Path(__file__).parent
WORK = HERE.parent / ".work" / "receiver"
RESULTS = HERE / "results.json"
PAGE = HERE.parent.parent / "docs" / "why-direct.md"
_RECORDS = 2_000_000
_VALUE_BYTES = 100
_KEY_BYTES = 8
_KILLS = 100
_RATE = 10_000
_BATCH_RECORDS = 10_000
_LIFE_SECONDS = 3.0
_TIMEOUT = 600.0
_WAYS = {"memory": "Receiver, without its log", "log": "Receiver, with its log", "direct": f"direct ({OURS})"}
_OWN_COLUMNS = ("partition", "offset")
_OUR_COLUMNS = ("_kafka_partition", "_kafka_offset")


def main() -> None:
    """Measure, and write results.json and the tables of docs/why-direct.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.receiver", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the backlog's records (default 1)")
    parser.add_argument("--kills", type=int, default=_KILLS, help=f"kills of each way (default {_KILLS})")
    parser.add_argument("--output", type=Path, default=RESULTS, help="another file leaves the page as it is")
    options = parser.parse_args()
    began = time.monotonic()
    dataset = Dataset("backlog", round(_RECORDS * options.scale), _VALUE_BYTES)
    with scratch(WORK), LocalKafka(data_dir=WORK / "kafka") as kafka:
        fill(kafka.bootstrap_servers, dataset)
        drained = {way: _drain(kafka.bootstrap_servers, dataset, way) for way in _WAYS}
        killed = {way: _kill(kafka.bootstrap_servers, way, options.kills) for way in _WAYS}
    results = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "took_seconds": round(time.monotonic() - began),
        "machine": machine(),
        "records": dataset.records,
        "rate": _RATE,
        "drained": drained,
        "killed": killed,
    }
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(_tables(results))
    if options.output == RESULTS:
        report.replace(PAGE, _tables(results))


def _drain(bootstrap: str, dataset: Dataset, way: str) -> dict[str, Any]:
    """Bring a backlog in, undisturbed."""
    folder = WORK / f"drain-{way}"
    folder.mkdir()
    cost, told = measure(
        _command(bootstrap, dataset.topic, folder, way, "drain"), folder=folder, env=_env(), timeout=_TIMEOUT
    )
    answer = json.loads(told.strip().splitlines()[-1])
    own = answer["streams"]["records"] if way == "direct" else answer
    received = own["records"] * (dataset.value_bytes + _KEY_BYTES)
    if own["records"] != dataset.records:
        raise RuntimeError(f"{_WAYS[way]} brought {own['records']} records of {dataset.records}")
    say(f"{_WAYS[way]}: {own['records'] / own['seconds']:,.0f} records/s")
    return {
        "records_per_second": round(own["records"] / own["seconds"]),
        "written_per_byte": round(cost.written / received, 2),
        "logged_per_byte": round(own.get("logged", 0) / received, 2),
        "cpu_seconds": round(cost.cpu_seconds, 2),
        "peak_pss": cost.peak_pss,
    }


def _kill(bootstrap: str, way: str, kills: int) -> dict[str, int]:
    """Kill it at random moments while records come in."""
    folder = WORK / f"kill-{way}"
    folder.mkdir()
    topic = f"fed_{way}"
    create_topic(bootstrap, topic, PARTITIONS)
    feed = trial.Feed(bootstrap, topic, _RATE)
    feed.start()
    try:
        serve = _command(bootstrap, topic, folder, way, "serve")
        drain = _command(bootstrap, topic, folder, way, "drain")
        moments = (0.0, _LIFE_SECONDS)
        if way == "direct":
            # Its life is short and begins with a start-up that does nothing: from the end of that to its end.
            trial.undisturbed(serve, folder, _env())
            whole, told = trial.undisturbed(serve, folder, _env())
            moments = (whole - json.loads(told)["streams"]["records"]["seconds"], whole)
        lives = trial.Lives(serve, way != "direct", moments)
        killed = trial.endure(lives, kills, folder, _env(), _WAYS[way])
    finally:
        feed.stop()
    trial.undisturbed(drain, folder, _env())
    ours = way == "direct"
    database = folder / ("warehouse.duckdb" if ours else "out.duckdb")
    outcome = trial.count(bootstrap, topic, database, _OUR_COLUMNS if ours else _OWN_COLUMNS, killed)
    say(f"{_WAYS[way]}: {outcome}")
    return asdict(outcome)


def _command(bootstrap: str, topic: str, folder: Path, way: str, mode: str) -> list[str | Path]:
    if way == "direct":
        options = f"    max_records_per_batch: {_BATCH_RECORDS}\n" if folder.name.startswith("kill") else ""
        return ingest_command(ingest_folder(folder, bootstrap, topic, options=options))
    return [sys.executable, "-m", "benchmarks.receiver.program", bootstrap, topic, folder, way, mode]


def _env() -> dict[str, str]:
    return environment(**own_modules())


def _tables(results: dict[str, Any]) -> str:
    kills = results["killed"]["direct"]["kills"]
    drained = [
        (
            _WAYS[way],
            f"{one['records_per_second']:,}",
            f"{one['logged_per_byte']:.2f}",
            f"{one['written_per_byte']:.2f}",
            f"{one['cpu_seconds']:.1f} s",
            f"{one['peak_pss'] / 1024**2:,.0f} MiB",
        )
        for way, one in results["drained"].items()
    ]
    killed = [
        (_WAYS[way], f"{one['records']:,}", f"{one['lost']:,}", f"{one['doubled']:,}")
        for way, one in results["killed"].items()
    ]
    heads = ("way", "records/s", "logged per byte", "written per byte", "CPU", "peak memory")
    minutes = results["took_seconds"] / 60
    conditions = (
        f"Measured {results['measured_at']} in {minutes:.0f} minutes on {report.told(results['machine'])},"
        f" the broker on the same machine. Blocks of {BLOCK_SECONDS * 1000:g} ms,"
        f" batches of {BATCH_SECONDS:g} s, offsets committed by the client every"
        f" {AUTO_COMMIT_SECONDS:g} s where there is no log."
    )
    kill_title = f"{kills} kills each, {results['rate']:,} records a second coming in"
    drain_title = f"A backlog of {results['records']:,} records of {_VALUE_BYTES} bytes, undisturbed"
    return "\n\n".join(
        (
            report.table(kill_title, ("way", "records produced", "lost", "doubled"), killed),
            report.table(drain_title, heads, drained),
            conditions,
        )
    )


if __name__ == "__main__":
    main()
