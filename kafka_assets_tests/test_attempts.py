from __future__ import annotations

import pytest

from kafka_assets.attempts import BatchRun, Blocked, Launch, OpenBatch, RunStatus, Wait, backoff, decide

NOW = 1_000_000.0


def run(status: RunStatus, attempt: int | None = 1, ago: float = 100.0, **facts) -> BatchRun:
    """A run created `ago` seconds before now, which ended at once if it has ended."""
    ended = None if status in (RunStatus.QUEUED, RunStatus.STARTED) else NOW - ago
    return BatchRun(status, created_at=NOW - ago, attempt=attempt, **{"ended_at": ended, **facts})


def ask(batch: OpenBatch, *runs: BatchRun, max_attempts: int = 5, batch_timeout: float = 3600.0):
    return decide(batch, runs, now=NOW, max_attempts=max_attempts, batch_timeout=batch_timeout)


def test_a_new_batch_is_launched_at_once():
    """A batch without a run gets its first one without any wait."""
    assert ask(OpenBatch(attempts=0)) == Launch(1, claim=True)


@pytest.mark.parametrize(
    "alive",
    [
        run(RunStatus.QUEUED, ago=90_000.0),
        run(RunStatus.STARTED, ago=10.0),
        run(RunStatus.STARTED, ago=10_000.0, same_host=False, last_seen=NOW - 60.0),
        run(RunStatus.STARTED, attempt=None, ago=10.0),
    ],
)
def test_a_batch_with_a_run_alive_is_left(alive):
    """Queued, not taken up yet, or heard of lately on another host: the run is alive, whoever launched it."""
    assert ask(OpenBatch(attempts=1, launched_at=NOW - 100.0), alive) == Wait("a run of it is alive")


def test_a_held_lock_is_a_sign_of_life():
    """A process that holds the batch's lock is at work on it, with or without a run, blocked or not."""
    assert ask(OpenBatch(attempts=0, lock_held=True)) == Wait("a process holds the batch's lock")
    assert isinstance(ask(OpenBatch(attempts=5, lock_held=True, blocked="x"), run(RunStatus.FAILED, 5)), Wait)


@pytest.mark.parametrize("where", [{"same_host": True}, {"same_host": False, "same_boot": True}])
def test_a_run_of_this_host_without_the_lock_is_dead_at_once(where):
    """A run taken up on this host whose lock is free was killed: nobody waits for its timeout."""
    killed = run(RunStatus.STARTED, ago=40.0, **where)
    assert ask(OpenBatch(attempts=1, launched_at=NOW - 40.0), killed) == Launch(2, claim=True)


def test_a_silent_run_of_another_host_dies_by_timeout():
    """What this host cannot judge counts as dead once it was silent for the batch timeout."""
    batch = OpenBatch(attempts=1, launched_at=NOW - 9000.0)
    silent = run(RunStatus.STARTED, ago=9000.0, same_host=False, last_seen=NOW - 3601.0)
    assert ask(batch, silent) == Launch(2, claim=True)
    assert isinstance(ask(batch, silent, batch_timeout=7200.0), Wait)


def test_a_run_that_never_started_dies_by_timeout():
    """A run that was started and that no process ever took up does not hold its batch for ever."""
    batch = OpenBatch(attempts=1, launched_at=NOW - 9000.0)
    assert ask(batch, run(RunStatus.STARTED, ago=9000.0)) == Launch(2, claim=True)


@pytest.mark.parametrize("status", [RunStatus.FAILED, RunStatus.SUCCESS, RunStatus.CANCELED])
def test_an_ended_run_that_did_not_commit_is_followed_by_another(status):
    """Failed, cancelled by the system, or succeeded while the ledger says planned: the next attempt."""
    batch = OpenBatch(attempts=1, launched_at=NOW - 100.0)
    assert ask(batch, run(status, ago=31.0)) == Launch(2, claim=True)


def test_the_next_attempt_waits_for_the_back_off():
    """Between a failure and the next attempt lie 30 seconds, then twice as long each time."""
    batch = OpenBatch(attempts=2, launched_at=NOW - 100.0)
    early = run(RunStatus.FAILED, attempt=2, ago=18.0)
    assert ask(batch, run(RunStatus.FAILED, attempt=1), early) == Wait("attempt 3 of 5 in 42 s")
    assert ask(batch, run(RunStatus.FAILED, attempt=2, ago=60.0)) == Launch(3, claim=True)


def test_the_back_off_counts_from_the_last_failure():
    """A run launched by hand that failed later than the sensor's moves the next attempt."""
    batch = OpenBatch(attempts=1, launched_at=NOW - 500.0)
    by_hand = run(RunStatus.FAILED, attempt=None, ago=400.0, ended_at=NOW - 10.0)
    assert ask(batch, run(RunStatus.FAILED, ago=400.0), by_hand) == Wait("attempt 2 of 5 in 20 s")


@pytest.mark.parametrize(
    ("attempts", "seconds"), [(0, 30), (1, 30), (2, 60), (3, 120), (5, 480), (6, 600), (10_000, 600)]
)
def test_the_back_off_doubles_up_to_ten_minutes(attempts, seconds):
    """The wait after attempt n is 30 s x 2^(n-1), at most 600 s, however large n."""
    assert backoff(attempts) == seconds


def test_a_failed_run_by_hand_does_not_use_up_an_attempt():
    """A batch that a person ran in vain before the sensor did gets its first attempt after a back-off."""
    assert ask(OpenBatch(attempts=0), run(RunStatus.FAILED, attempt=None, ago=31.0)) == Launch(1, claim=True)
    assert isinstance(ask(OpenBatch(attempts=0), run(RunStatus.FAILED, attempt=None, ago=29.0)), Wait)


def test_a_run_cancelled_by_a_person_is_respected():
    """Cancelling a batch's run keeps the sensor off it, until another run of it has been launched."""
    batch = OpenBatch(attempts=1, launched_at=NOW - 9000.0)
    cancelled = run(RunStatus.CANCELED, ago=8000.0, canceled_by_person=True)
    assert isinstance(ask(batch, cancelled), Wait)
    again = run(RunStatus.FAILED, attempt=None, ago=7000.0)
    assert ask(batch, cancelled, again) == Launch(2, claim=True)


def test_an_automatic_retry_is_waited_for():
    """Where Dagster will retry the run itself the sensor keeps out, but not for ever."""
    batch = OpenBatch(attempts=1, launched_at=NOW - 9000.0)
    assert isinstance(ask(batch, run(RunStatus.FAILED, ago=200.0, will_retry=True)), Wait)
    assert ask(batch, run(RunStatus.FAILED, ago=3700.0, will_retry=True)) == Launch(2, claim=True)


def test_a_requested_run_that_never_appeared_is_requested_again():
    """Claimed and not launched, as when the daemon died between: the same attempt again after 5 minutes."""
    before = run(RunStatus.FAILED, attempt=1, ago=9000.0)
    assert ask(OpenBatch(attempts=2, launched_at=NOW - 301.0), before) == Launch(2, claim=False)
    assert ask(OpenBatch(attempts=2, launched_at=NOW - 299.0), before) == Wait(
        "attempt 2 was requested 299 s ago, no run of it yet"
    )


def test_the_last_attempt_is_requested_again_too():
    """An attempt whose run never appeared was not had, also if it is the last."""
    assert ask(OpenBatch(attempts=5, launched_at=NOW - 301.0)) == Launch(5, claim=False)


def test_out_of_attempts_is_blocked():
    """After the last attempt has failed, the batch is blocked at once, with the error code."""
    decision = ask(OpenBatch(attempts=5, launched_at=NOW - 5.0), run(RunStatus.FAILED, attempt=5, ago=1.0))
    assert isinstance(decision, Blocked)
    assert decision.code == "ATTEMPTS_EXHAUSTED"
    assert "5 of 5 attempts" in decision.reason


def test_a_batch_that_others_kept_out_of_the_warehouse_is_not_exhausted():
    """However often it failed for that alone, its next attempt comes after the back-off."""
    batch = OpenBatch(attempts=5, launched_at=NOW - 700.0, locked_out=True)
    assert ask(batch, run(RunStatus.FAILED, 5, ago=700.0)) == Launch(6, claim=True)
    assert isinstance(ask(batch, run(RunStatus.FAILED, 5, ago=100.0)), Wait)


def test_a_blocked_batch_stays_blocked():
    """A batch stopped by policy gets no run from the sensor, and no second reason."""
    batch = OpenBatch(attempts=1, launched_at=NOW - 900.0, blocked="DATA_LOST: orders[3] [0, 9)")
    assert ask(batch, run(RunStatus.FAILED)) == Blocked("DATA_LOST: orders[3] [0, 9)")


def test_a_clock_set_back_does_not_hold_a_batch():
    """Times that lie far in the future are not waited for."""
    batch = OpenBatch(attempts=1, launched_at=NOW + 90_000.0)
    assert ask(batch, run(RunStatus.FAILED, ago=-90_000.0)) == Launch(2, claim=True)
    assert ask(batch) == Launch(1, claim=False)
