"""The storm: `python -m kafka_assets_tests.storm`, some hours of trying to break the promise."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from kafka_assets_tests.storm.examples import run_examples
from kafka_assets_tests.storm.kills import Shares, Storm

KILLS = 1000
EXAMPLES = 10_000
SCRATCH = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it


def main() -> int:
    """Run the machine, then the kills; return 0 if all held."""
    parser = argparse.ArgumentParser(prog="python -m kafka_assets_tests.storm", description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS, help=f"kills in all (default {KILLS:,})")
    parser.add_argument("--workers", type=int, help="of these, kills of run workers (default a fifth)")
    parser.add_argument(
        "--services", type=int, help="of these, of other processes of Dagster (default a 40th)"
    )
    parser.add_argument(
        "--examples", type=int, default=EXAMPLES, help=f"of the state machine (default {EXAMPLES:,})"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes for the examples")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of moments and examples")
    parser.add_argument("--keep", action="store_true", help="leave the folder of the kills behind")
    options = parser.parse_args()
    say(f"seed {options.seed}")
    held = True
    if options.examples:
        held &= _examples(options.examples, options.jobs, options.seed)
    if options.kills:
        shares = Shares.of(options.kills)
        workers = shares.workers if options.workers is None else options.workers
        services = shares.services if options.services is None else options.services
        held &= _kills(
            Shares(options.kills - workers - services, workers, services), options.seed, keep=options.keep
        )
    return 0 if held else 1


def _examples(count: int, jobs: int, seed: int) -> bool:
    began = time.monotonic()
    jobs = min(jobs, count)
    counts = [count // jobs + (number < count % jobs) for number in range(jobs)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_examples, each, seed + number) for number, each in enumerate(counts)]
        outcomes = [future.result() for future in futures]
    for one in outcomes:
        if one.failure:
            say(one.failure)
    broken = sum(one.failure is not None for one in outcomes)
    ran = sum(one.examples for one in outcomes)
    say(f"{ran:,} examples in {time.monotonic() - began:,.0f} s: {broken} broken invariants")
    return not broken


def _kills(shares: Shares, seed: int, *, keep: bool) -> bool:
    # Here, not above: the processes of the examples need no broker.
    from kafka_assets.dev.broker import LocalKafka  # noqa: PLC0415

    folder = Path(tempfile.mkdtemp(prefix="kafka-assets-storm-", dir=SCRATCH if SCRATCH.is_dir() else None))
    outcome = None
    try:
        with LocalKafka() as kafka:
            outcome = Storm(folder, kafka.bootstrap_servers, seed=seed, say=say).run(shares)
    finally:
        if keep or outcome is None or not outcome.holds:
            say(f"everything is left in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for place, count in sorted(outcome.at.items()):
        say(f"{count:6,}  {place}")
    for problem in outcome.problems:
        say(problem)
    say(str(outcome))
    return outcome.holds


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  what it is for


if __name__ == "__main__":
    sys.exit(main())
