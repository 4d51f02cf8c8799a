"""Many examples of the state machine, in a process of their own."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import traceback
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from kafka_assets.warehouse import ALLOW_NETWORK_FS
from kafka_assets_tests.storm import machine

STEPS = 30


@dataclass(frozen=True)
class Examples:
    """How many were run, and the first that broke an invariant, as text.

    Attributes:
        examples: How many.
        failure: None if all held.
        counts: How often something was reached, by what it is.
        reached: In how many of the examples.
    """

    examples: int
    failure: str | None
    counts: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)


def leave_at_once() -> None:
    """Have this process end without taking the interpreter down, in which DuckDB tells of all it finds left."""
    atexit.register(_leave)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_examples(count: int, number: int) -> Examples:
    """Run so many examples of a seed."""
    logging.disable(logging.CRITICAL)
    # The warehouse is in memory; to look at each opening where it lies is a tenth of what an example costs.
    os.environ[ALLOW_NETWORK_FS] = "1"
    chosen = settings(
        max_examples=count,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    failure = None
    try:
        run_state_machine_as_test(seed(number)(machine.StormMachine), settings=chosen)
    except Exception:  # noqa: BLE001  told by the caller
        failure = traceback.format_exc()
    finally:
        machine.clean_up()
    return Examples(machine.examples, failure, machine.times, machine.reached)
