"""It stays flat as it grows: what a full warehouse costs beside one that holds a batch, and beside a tenth of it.

    python -m benchmarks.scale [--rows N] [--batches N] [--pairs N] [--deep N]

Ratios hold on a busy machine too: what is compared runs back to back, and in CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchmarks.data import Dataset, fill
from benchmarks.environments import say
from benchmarks.folders import environment, scratch
from benchmarks.grown import BETWEEN_BATCHES, FIRST_BATCH, STREAM, Grown
from benchmarks.measure import Cost, measure
from kafka_assets import connect, ledger
from kafka_assets.dev.broker import LocalKafka

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

WORK = Path(__file__).parent / ".work" / "scale"
COMMAND = Path(sys.executable).with_name("kafka-assets")
TIMEOUT = 3600.0
_MIB = 1024**2

T = TypeVar("T")

_DEEP_FILE = """
kafka: {{bootstrap.servers: {bootstrap}}}
warehouse: {{uri: "duckdb:///w.duckdb"}}
streams:
  orders: {{topics: [{topic}], format: raw, min_records_per_batch: 1}}
"""


def main() -> None:
    """Grow the warehouses, measure, print the tables, and remove what was made."""
    options = _options()
    with scratch(options.folder):
        if options.rows:
            empty = Grown(options.folder / "empty")
            empty.grow(options.size, 1)
            tenth, whole = Grown(options.folder / "tenth"), Grown(options.folder / "whole")
            tenth.grow(options.rows // 10, options.batches // 10)
            whole.grow(options.rows, options.batches)
            print(f"{options.rows:,} rows in {options.batches:,} batches beside an empty warehouse")
            print(_beside_empty(whole, empty, options.pairs, options.size))
            print(f"\n{options.rows:,} rows in {options.batches:,} batches beside a tenth of both")
            print(_beside_tenth(whole, tenth, options.batches))
        if options.deep:
            print(f"\n`verify --deep` of {options.deep:,} records beside a tenth")
            print(_deep(options.folder, options.deep))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    add_option = parser.add_argument
    add_option("--rows", type=int, default=100_000_000, help="in the full warehouse; 0 leaves it out")
    add_option("--batches", type=int, default=100_000, help="in the full warehouse")
    add_option("--pairs", type=int, default=15, help="commits into each; the median counts (15)")
    add_option("--size", type=int, default=10_000, help="records of each of those commits (10,000)")
    add_option("--deep", type=int, default=5_000_000, help="records in Kafka; 0 leaves it out")
    add_option("--folder", type=Path, default=WORK, help="where all of it is made, and removed from")
    return parser.parse_args()


def _beside_empty(whole: Grown, empty: Grown, pairs: int, size: int) -> str:
    """Do the same to both in turn, so that the noise of the machine is on both."""
    took: dict[str, dict[Grown, list[float]]] = {}

    def timed(what: str, on: Grown, work: Callable[[], T]) -> T:
        began = time.process_time()
        answer = work()
        took.setdefault(what, {}).setdefault(on, []).append(time.process_time() - began)
        return answer

    for number in range(pairs + 1):
        for one in (whole, empty) if number % 2 else (empty, whole):
            key = timed("plan a batch", one, partial(one.plan, size))
            staged = one.staged(key)
            timed("commit a batch", one, partial(one.commit, key, staged))
            timed("verify that batch", one, partial(one.proof, key))
            timed("read for `status`", one, partial(_status, one))
            timed("open, query positions", one, partial(_query, one, "FROM kafka_assets.positions"))
            last = f"FROM kafka_assets.batches WHERE batch = '{key}'"
            timed("open, query one batch", one, partial(_query, one, last))
    lines = [f"{'CPU time, median':<24}{'full':>10}{'empty':>10}{'ratio':>8}"]
    for what, by in took.items():
        # The first of each warms up what the process keeps.
        full, bare = (statistics.median(by[one][1:]) for one in (whole, empty))
        ratio = statistics.median(a / b for a, b in zip(by[whole][1:], by[empty][1:], strict=True))
        lines.append(f"{what:<24}{full * 1000:>7.0f} ms{bare * 1000:>7.0f} ms{ratio:>8.2f}")
    return "\n".join(lines)


def _status(grown: Grown) -> None:
    with grown.warehouse.reading() as con:
        ledger.positions_report(con, STREAM)
        ledger.batch_counts(con, STREAM)


def _query(grown: Grown, statement: str) -> None:
    with connect(grown.config) as reader:
        reader.execute(statement).fetchall()


def _beside_tenth(whole: Grown, tenth: Grown, batches: int) -> str:
    def costs(*words: str) -> list[Cost]:
        return [_cost(one.file, *words) for one in (whole, tenth)]

    # Of each the oldest tenth: its batches are as far apart, and there are so many fewer.
    found = {"verify": costs("verify")}
    expired = []
    for one, count in ((whole, batches // 10), (tenth, batches // 100)):
        until = (FIRST_BATCH + count * BETWEEN_BATCHES).isoformat().replace("+00:00", "Z")
        expired.append(_cost(one.file, "expire", STREAM, "--before", until, "--yes"))
    found["expire the oldest tenth"] = expired
    found["verify after it"] = costs("verify")
    return _table(found)


def _deep(folder: Path, records: int) -> str:
    costs = []
    with LocalKafka(data_dir=folder / "kafka") as kafka:
        for name, count in (("whole", records), ("tenth", records // 10)):
            dataset = Dataset(f"deep_{name}", count, 100)
            fill(kafka.bootstrap_servers, dataset)
            place = folder / f"deep-{name}"
            place.mkdir(parents=True)
            file = place / "streams.yaml"
            file.write_text(_DEEP_FILE.format(bootstrap=kafka.bootstrap_servers, topic=dataset.topic))
            (place / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
            say(f"{count:,} records produced")
            _cost(file, "ingest")
            costs.append(_cost(file, "verify", "--deep"))
    return _table({"verify --deep": costs})


def _cost(file: Path, *words: str) -> Cost:
    command = [COMMAND, "--config", file, *words]
    cost, _ = measure(command, folder=file.parent, env=environment(), timeout=TIMEOUT)
    say(f"{' '.join(words[:2])}: {cost.seconds:.1f} s")
    return cost


def _table(found: Mapping[str, Sequence[Cost]]) -> str:
    lines = [f"{'whole command':<26}{'seconds':>9}{'CPU':>8}{'peak':>9}{'CPU ratio':>11}{'peak ratio':>12}"]
    for what, (full, part) in found.items():
        lines.append(
            f"{what:<26}{full.seconds:>9.1f}{full.cpu_seconds:>8.1f}{full.peak_pss / _MIB:>5.0f} MiB"
            f"{full.cpu_seconds / part.cpu_seconds:>11.1f}{full.peak_pss / part.peak_pss:>12.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
