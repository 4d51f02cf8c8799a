from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kafka_assets.dev.broker import LocalKafka
from kafka_assets_tests.faults.story import Story
from kafka_assets_tests.storm.repeats import BOOTSTRAP, REPEATS, REPORT

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat each test, if the storm asks for it."""
    if (times := int(os.environ.get(REPEATS, "1"))) > 1:
        metafunc.fixturenames.append("repetition")
        metafunc.parametrize(
            "repetition", range(times), ids=[f"repetition{number}" for number in range(times)]
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Repeated: one repetition after the other, and all that needs the cluster in one worker."""
    if REPEATS not in os.environ:
        return
    items.sort(key=_repetition)
    for item in items:
        if isinstance(item, pytest.Function) and "cluster" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("cluster"))


def _repetition(item: pytest.Item) -> int:
    spec = getattr(item, "callspec", None)
    return int(spec.params.get("repetition", 0)) if spec else 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Repeated: write down how each test ended."""
    report = yield
    if (file := os.environ.get(REPORT)) and (report.when == "call" or report.failed):
        name = re.sub(r"repetition\d+-?", "", item.nodeid.partition("@")[0])
        line = json.dumps([_repetition(item), name, report.longreprtext if report.failed else ""])
        # In one piece: other workers write there too.
        with Path(file).open("ab", buffering=0) as reports:
            reports.write(f"{line}\n".encode())
    return report


@pytest.fixture
def repetition(request: pytest.FixtureRequest) -> int:
    """The number of this run of a test."""
    return int(request.param)


@pytest.fixture
def bootstrap(request: pytest.FixtureRequest) -> str:
    """The Kafka that a storm has started for all workers, else that of this session."""
    given = os.environ.get(BOOTSTRAP)
    return given or str(request.getfixturevalue("kafka").bootstrap_servers)


@pytest.fixture(scope="package")
def dagster_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One Dagster instance for all stories: it records their runs, and nothing in them depends on it."""
    return make_dagster_home(tmp_path_factory.mktemp("dagster"))


def make_dagster_home(home: Path) -> Path:
    """Describe an instance in a folder."""
    # One file for the events of all runs: made anew for each they take longer than the stories.
    (home / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\n"
        "event_log_storage:\n"
        "  module: dagster._core.storage.event_log\n"
        "  class: ConsolidatedSqliteEventLogStorage\n"
        f"  config: {{base_dir: {home}}}\n"
    )
    return home


@pytest.fixture
def story_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dagster_home: Path
) -> Iterator[Callable[[str], Story]]:
    """`story_on(bootstrap)`: a project of its own, reading that Kafka."""
    monkeypatch.setenv("DAGSTER_HOME", str(dagster_home))
    monkeypatch.setenv("KAFKA_ASSETS_CONFIG", "")  # the command line sets it, and sets it back here
    monkeypatch.chdir(tmp_path)
    told: list[Story] = []

    def make(bootstrap: str) -> Story:
        told.append(Story(tmp_path, bootstrap, monkeypatch))
        return told[-1]

    yield make
    assert not any(one.to_come for one in told), "what was to happen in the midst of a fetch did not happen"


@pytest.fixture
def story(story_on: Callable[[str], Story], bootstrap: str) -> Story:
    """A project that reads this session's Kafka."""
    return story_on(bootstrap)


@pytest.fixture(scope="package")
def cluster() -> Iterator[LocalKafka]:
    """Three nodes, for the stories in which some of them go down."""
    with LocalKafka(nodes=3) as started:
        yield started


@pytest.fixture
def cluster_story(cluster: LocalKafka, story_on: Callable[[str], Story]) -> Story:
    """A project that reads the cluster, all of whose nodes are up."""
    for node in {1, 2, 3} - set(cluster.pids):
        cluster.start_node(node)
    return story_on(cluster.bootstrap_servers)
