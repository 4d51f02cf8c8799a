"""Whether an open batch gets another run: what the ledger says of it x its runs -> launch, wait or blocked.

Two runs of one batch do no harm, since only one of them can commit it. These rules keep that rare, and see
to it that no batch waits for a run that is dead. All times are seconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

LAUNCH_GRACE = 300.0
"""Seconds after which a run that was requested and never appeared is requested again."""

_FIRST_BACKOFF = 30.0
_LONGEST_BACKOFF = 600.0


class RunStatus(Enum):
    """What the run storage has of a run, as far as it matters here."""

    QUEUED = "queued"
    """Waits to be started."""
    STARTED = "started"
    """Starting, executing or being cancelled, as far as was last heard."""
    SUCCESS = "success"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One run of a batch, whoever launched it.

    Attributes:
        status: As the run storage has it.
        created_at: When it was created.
        attempt: Which attempt the sensor requested it as, None if it did not.
        same_host: Whether its tags name this host; None as long as no process has taken it up.
        same_boot: Whether its tags name this boot of the kernel, which a container shares with its host;
            None where one of the two is not known.
        last_seen: Its latest sign of life, None if there is none after `created_at`.
        ended_at: When it ended, None if it has not or that is unknown.
        will_retry: An automatic retry of it is to come.
        canceled_by_person: A person cancelled it.
    """

    status: RunStatus
    created_at: float
    attempt: int | None = None
    same_host: bool | None = None
    same_boot: bool | None = None
    last_seen: float | None = None
    ended_at: float | None = None
    will_retry: bool = False
    canceled_by_person: bool = False


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that is planned and not committed.

    Attributes:
        attempts: Runs that were requested of it, so also the number of the latest.
        launched_at: When the latest was requested.
        lock_held: Whether any process of this host holds the batch's lock.
        blocked: Why a person has to look at it first, None otherwise.
        locked_out: Whether its latest run failed for nothing but that others had the warehouse.
    """

    attempts: int
    launched_at: float | None = None
    lock_held: bool = False
    blocked: str | None = None
    locked_out: bool = False


@dataclass(frozen=True, slots=True)
class Launch:
    """Request a run.

    Attributes:
        attempt: Its number, from 1.
        claim: Count it in the ledger first, from `attempt - 1`. If false it was, and its run never came.
    """

    attempt: int
    claim: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Leave it for now."""

    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """Leave it until a person has looked at it.

    Attributes:
        reason: For people.
        code: The error code where the decision is new; None where the ledger says so already.
    """

    reason: str
    code: str | None = None

    EXHAUSTED: ClassVar[str] = "ATTEMPTS_EXHAUSTED"


def decide(
    batch: OpenBatch, runs: Sequence[BatchRun], *, now: float, max_attempts: int, batch_timeout: float
) -> Launch | Wait | Blocked:
    """Decide what happens to an open batch.

    Args:
        batch: What the ledger says, and its lock.
        runs: All that are known of it, in any order.
        now: The time.
        max_attempts: How many runs the sensor requests before it gives up.
        batch_timeout: Seconds for which a run that this host cannot judge may be silent before it counts as
            dead, and for which a promised retry is waited for.
    """
    if batch.lock_held:
        return Wait("a process holds the batch's lock")
    if any(is_alive(run, now, batch_timeout) for run in runs):
        return Wait("a run of it is alive")
    if batch.blocked is not None:
        return Blocked(batch.blocked)
    if any(run.will_retry and abs(now - _last_sign(run)) < batch_timeout for run in runs):
        return Wait("an automatic retry of its run is to come")
    if runs and max(runs, key=lambda run: run.created_at).canceled_by_person:
        return Wait("its latest run was cancelled by a person: launch the batch by hand to go on")
    return _next_attempt(batch, runs, now, max_attempts)


def _next_attempt(
    batch: OpenBatch, runs: Sequence[BatchRun], now: float, max_attempts: int
) -> Launch | Wait | Blocked:
    """Decide for a batch that nobody is at work on."""
    if batch.attempts and all(run.attempt != batch.attempts for run in runs):
        silent = None if batch.launched_at is None else abs(now - batch.launched_at)
        if silent is None or silent > LAUNCH_GRACE:
            return Launch(batch.attempts, claim=False)
        return Wait(f"attempt {batch.attempts} was requested {silent:.0f} s ago, no run of it yet")
    # Who has the warehouse for long will let go of it; no person has to look at the batch for that.
    if batch.attempts >= max_attempts and not batch.locked_out:
        return Blocked(
            f"{batch.attempts} of {max_attempts} attempts did not commit it: see the error of the last, then"
            " run it again by hand",
            code=Blocked.EXHAUSTED,
        )
    if runs:
        left = backoff(batch.attempts) - abs(now - max(map(_last_sign, runs)))
        if left > 0:
            return Wait(f"attempt {batch.attempts + 1} of {max_attempts} in {left:.0f} s")
    return Launch(batch.attempts + 1, claim=True)


def backoff(attempts: int) -> float:
    """Seconds from the failure of the given attempt to the next: 30, 60, 120 and so on, at most 600."""
    return min(_FIRST_BACKOFF * 2.0 ** min(max(attempts - 1, 0), 10), _LONGEST_BACKOFF)


def is_alive(run: BatchRun, now: float, batch_timeout: float) -> bool:
    """Whether a run may still be at work, given that no process of this host holds the batch's lock."""
    if run.status is RunStatus.QUEUED:
        return True
    if run.status is not RunStatus.STARTED or run.same_host or run.same_boot:
        # Whoever executes a batch here holds its lock, which even kill -9 frees.
        return False
    return abs(now - _last_sign(run)) < batch_timeout


def _last_sign(run: BatchRun) -> float:
    return next(at for at in (run.ended_at, run.last_seen, run.created_at) if at is not None)
