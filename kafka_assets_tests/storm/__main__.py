"""The storm: `python -m kafka_assets_tests.storm`, some hours of trying to break the promise."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from kafka_assets_tests.storm.examples import leave_at_once, run_examples

KILLS = 1000
EXAMPLES = 10_000
REPEATS = 20
SCRATCH = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it
_SHARE = 500
"""Examples from one word of how far it is to the next, and of one process, which then gives its memory back."""


def main() -> int:
    """Run the machine, the kills, the fault tests; return 0 if all held."""
    options = _options()
    say(f"seed {options.seed}")
    parts = []
    if options.examples:
        parts.append(_examples(options.examples, options.jobs, options.seed))
    if options.kills:
        parts.append(_kills(options))
    if options.repeats:
        parts.append(_repeats(options.repeats, 2 * options.jobs))
    say("; ".join(part.text for part in parts))
    return 0 if all(part.held for part in parts) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kafka_assets_tests.storm", description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS, help=f"kills in all (default {KILLS:,})")
    parser.add_argument("--workers", type=int, help="of these, kills of run workers (default a fifth)")
    parser.add_argument("--verbs", type=int, help="of these, kills of the operator's verbs (default a fifth)")
    parser.add_argument(
        "--services", type=int, help="of these, of other processes of Dagster (default a 40th)"
    )
    parser.add_argument(
        "--examples", type=int, default=EXAMPLES, help=f"of the state machine (default {EXAMPLES:,})"
    )
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help=f"of all fault tests (default {REPEATS})"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="examples at once, and half of the storms and of the workers of tests, which wait (default: cores)",
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of moments and examples")
    parser.add_argument("--keep", action="store_true", help="leave the folder of the kills behind")
    return parser.parse_args()


@dataclass(frozen=True)
class Part:
    """Whether a part of the storm held, and its figures."""

    held: bool
    text: str


def _examples(count: int, jobs: int, seed: int) -> Part:
    began = time.monotonic()
    shares = [min(_SHARE, count - told) for told in range(0, count, _SHARE)]
    processes = ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=leave_at_once, max_tasks_per_child=1
    )
    with processes as pool:
        futures = [pool.submit(run_examples, each, seed + number) for number, each in enumerate(shares)]
        outcomes = []
        for done in as_completed(futures):
            outcomes.append(done.result())
            if (failure := outcomes[-1].failure) is not None:
                say(failure)
            say(f"{sum(one.examples for one in outcomes):,} of {count:,} examples")
    broken = sum(one.failure is not None for one in outcomes)
    ran = sum(one.examples for one in outcomes)
    counts, reached = Counter[str](), Counter[str]()
    for one in outcomes:
        counts += one.counts
        reached += one.reached
    for what, examples in sorted(reached.items()):
        say(f"{counts[what]:9,}  in {examples / ran:6.2%} of the examples  {what}")
    text = f"{ran:,} examples: {broken} broken invariants"
    say(f"{text}, in {time.monotonic() - began:,.0f} s")
    return Part(not broken, text)


def _kills(options: argparse.Namespace) -> Part:
    # Here, not above: the processes of the examples need no broker.
    from kafka_assets.dev.broker import LocalKafka  # noqa: PLC0415
    from kafka_assets_tests.storm.kills import Shares  # noqa: PLC0415
    from kafka_assets_tests.storm.side_by_side import kill_all_over  # noqa: PLC0415

    began = time.monotonic()
    fifth = options.kills // 5
    workers = fifth if options.workers is None else options.workers
    verbs = fifth if options.verbs is None else options.verbs
    services = options.kills // 40 if options.services is None else options.services
    shares = Shares(max(0, options.kills - workers - verbs - services), workers, services)
    folder = Path(tempfile.mkdtemp(prefix="kafka-assets-storm-", dir=SCRATCH if SCRATCH.is_dir() else None))
    outcome = None
    try:
        with LocalKafka() as kafka:
            outcome = kill_all_over(
                folder, kafka.bootstrap_servers, shares, verbs, seed=options.seed, jobs=2 * options.jobs
            )
    finally:
        if options.keep or outcome is None or not outcome.holds:
            say(f"everything is left in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for place, count in sorted(outcome.at.items()):
        say(f"{count:6,}  {place}")
    for problem in outcome.problems:
        say(problem)
    for place in outcome.missed:
        say(f"never killed: {place}")
    say(f"{outcome}, {len(outcome.missed)} places never met, in {time.monotonic() - began:,.0f} s")
    return Part(outcome.holds, str(outcome))


def _repeats(times: int, workers: int) -> Part:
    from kafka_assets_tests.storm.repeats import repeat  # noqa: PLC0415  as above

    began = time.monotonic()
    repeated = repeat(times, workers)
    for failure in repeated.failures:
        say(failure)
    text = f"{repeated.green} of {repeated.repeats} runs of the fault tests green"
    say(f"{text}, in {time.monotonic() - began:,.0f} s")
    return Part(repeated.green == repeated.repeats, text)


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  what it is for


if __name__ == "__main__":
    sys.exit(main())
