"""Several storms at once: each waits most of its time for what it has started."""

from __future__ import annotations

import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

from kafka_assets_tests.storm.outcome import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from kafka_assets_tests.storm.kills import Shares


def kill_all_over(
    folder: Path, bootstrap: str, shares: Shares, verbs: int, *, seed: int, jobs: int
) -> Outcome:
    """Run so many storms that share the kills, and the verbs beside them.

    Args:
        folder: An empty folder; each has one of its own in it.
        bootstrap: A Kafka for all of them; each has topics of its own.
        shares: What the storms share.
        verbs: Kills of the operator's verbs.
        seed: Of all of them.
        jobs: How many storms.
    """
    outcome = Outcome()
    with ProcessPoolExecutor(jobs + 1, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(
                _storm, folder / f"storm-{number}", bootstrap, shares.part(number, jobs), seed, number, jobs
            )
            for number in range(jobs)
        ]
        if verbs:
            futures.append(pool.submit(_verbs, folder / "verbs", bootstrap, verbs, seed))
        for future in as_completed(futures):
            outcome.add(future.result())
    return outcome


def _storm(folder: Path, bootstrap: str, shares: Shares, seed: int, number: int, of: int) -> Outcome:
    from kafka_assets_tests.storm.kills import Storm  # noqa: PLC0415  here alone: it imports Dagster

    folder.mkdir()
    say = partial(print, f"storm {number}:", flush=True)
    storm = Storm(folder, bootstrap, seed=seed, say=say, number=number, of=of)
    try:
        storm.run(shares)
    except Exception:  # noqa: BLE001  the others go on
        why = traceback.format_exc()
        say(f"ended by {why}")
        storm.outcome.problems.append(f"storm {number}: {why}")
    return storm.outcome


def _verbs(folder: Path, bootstrap: str, kills: int, seed: int) -> Outcome:
    from kafka_assets_tests.storm.verbs import Verbs  # noqa: PLC0415  as above

    folder.mkdir()
    verbs = Verbs(folder, bootstrap, seed=seed)
    try:
        verbs.run(kills)
    except Exception:  # noqa: BLE001  as above
        verbs.outcome.problems.append(f"verbs: {traceback.format_exc()}")
    print(f"verbs: {verbs.outcome.kills:,} kills", flush=True)  # noqa: T201  as the storms tell theirs
    return verbs.outcome
