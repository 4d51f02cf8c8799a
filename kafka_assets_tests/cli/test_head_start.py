"""The fetching process of `ingest`, started beside the import of Dagster."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from kafka_assets import fetcher
from kafka_assets.cli import head_start
from kafka_assets.cli.session import Session
from kafka_assets_tests.support.kafka import values, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from kafka_assets_tests.cli.support import Project
    from kafka_assets_tests.conftest import Produce, TopicFactory

ENOUGH = 10


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """The fetching processes started, with so few offsets worth one."""
    monkeypatch.setattr(fetcher, "WORTH_A_PROCESS", ENOUGH)
    made: list[subprocess.Popen[str]] = []

    def start(words: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        made.append(popen(words, **options))
        return made[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(fetcher.subprocess, "Popen", start)
    return made


def session_of(project: Project) -> Session:
    return Session(str(project.folder / "streams.yaml"), as_json=True, out=None)  # type: ignore[arg-type]  unused


def test_the_process_starts_meanwhile_and_ends_with_the_call(
    project: Project, topic: TopicFactory, produce: Produce, started: list[subprocess.Popen[str]]
) -> None:
    """With enough to fetch the process is there before anybody asks for a fetch, and not after the call."""
    name = topic()
    produce(name, values(ENOUGH))
    project.write({"orders": {"topics": [name]}})
    session = session_of(project)
    with head_start.fetcher_for(session, session.config.stream("orders")):
        wait_until(lambda: started, "the process")
        assert started[0].poll() is None
    assert len(started) == 1
    assert started[0].poll() is not None


def test_little_is_not_worth_a_process(
    project: Project, topic: TopicFactory, produce: Produce, started: list[subprocess.Popen[str]]
) -> None:
    """With less to fetch none is started."""
    name = topic()
    produce(name, values(ENOUGH - 1))
    project.write({"orders": {"topics": [name]}})
    session = session_of(project)
    with head_start.fetcher_for(session, session.config.stream("orders")) as ahead:
        assert not ahead.start_for(ENOUGH - 1)
    assert started == []


def test_brokers_that_do_not_answer_are_left_to_the_drain(
    offline: Project, started: list[subprocess.Popen[str]], recwarn: pytest.WarningsRecorder
) -> None:
    """Nothing is raised or printed of it here: the drain of the stream meets the same, and tells it."""
    offline.write({"orders": {"topics": ["orders"]}})
    session = session_of(offline)
    with head_start.fetcher_for(session, session.config.stream("orders")):
        pass
    assert started == []
    assert not [one for one in recwarn if one.category is pytest.PytestUnhandledThreadExceptionWarning]
