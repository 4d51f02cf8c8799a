"""The process that fetches ahead, as those that have it fetch see it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

from kafka_assets.fetch import FetchCancelledError
from kafka_assets.fetcher import Fetcher
from kafka_assets_tests.support.kafka import values, wait_until


@pytest.fixture
def project(topic, produce, bench):
    """A project with a batch of six records that is planned and not fetched."""
    name = topic()
    produce(name, values(6))
    made = bench(topics=[name])
    made.tick()
    return made


@pytest.fixture
def batch(project):
    (planned,) = project.state().open_batches
    return planned


@pytest.fixture
def ahead(project):
    with closing(Fetcher(project.runtime.config.path)) as made:
        yield made


def test_a_fetch_that_is_cancelled_ends_and_the_next_one_is_made(ahead, batch):
    """The one under way raises, though it waits for records; another is fetched by a new process."""
    (planned,) = batch.ranges
    never = replace(batch, ranges=(replace(planned, range=replace(planned.range, until_offset=100)),))
    with ThreadPoolExecutor(1) as pool:
        fetch = pool.submit(ahead.fetch, never, name="never")

        def cancelled() -> bool:
            ahead.cancel()
            return fetch.done()

        wait_until(cancelled, "the end of the fetch")
        with pytest.raises(FetchCancelledError):
            fetch.result()
        (staged,) = ahead.fetch(batch, name="again")
        assert staged.rows == 6


def test_to_cancel_nothing_keeps_the_process(ahead, batch):
    """A process between two fetches is left for the next stream."""
    ahead.fetch(batch, name="first")
    process = ahead._process
    ahead.cancel()
    ahead.fetch(batch, name="second")
    assert ahead._process is process


def test_a_process_that_was_killed_between_two_fetches_is_started_again(ahead, batch):
    """As by the system, for want of memory: the next stream is not left without one."""
    ahead.fetch(batch, name="first")
    ahead._process.kill()
    ahead._process.wait()
    (staged,) = ahead.fetch(batch, name="second")
    assert staged.rows == 6


def test_nothing_is_fetched_once_it_is_closed(ahead, batch):
    """A fetch asked for after the end says so, and starts no process that nobody would end."""
    ahead.close()
    with pytest.raises(FetchCancelledError):
        ahead.fetch(batch, name="late")
    assert ahead._process is None
