"""Many examples of the state machine, in a process of their own."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from kafka_assets_tests.storm import machine

STEPS = 30


@dataclass(frozen=True)
class Examples:
    """How many were run, and the first that broke an invariant, as text."""

    examples: int
    failure: str | None


def run_examples(count: int, number: int) -> Examples:
    """Run so many examples of a seed."""
    logging.disable(logging.CRITICAL)
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
    return Examples(machine.examples, failure)
