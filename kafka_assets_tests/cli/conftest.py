from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from kafka_assets_tests.cli.support import DAGSTER, NOWHERE, Project

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose brokers are nowhere; what commands do to this process is undone."""
    monkeypatch.chdir(tmp_path)
    for name in ("DAGSTER_HOME", "KAFKA_ASSETS_CONFIG"):
        # Set first: only then is it taken back if a command sets it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / "dagster.yaml").write_text(DAGSTER)
    return Project(tmp_path, NOWHERE)


@pytest.fixture(scope="session")
def instance_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a Dagster instance with no runs yet, which takes a second to make."""
    folder = tmp_path_factory.mktemp("instance")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "dagster.yaml").write_text(DAGSTER)
        with dg.DagsterInstance.from_config(str(folder)) as instance:
            instance.get_runs()
    return folder / ".dagster"


@pytest.fixture
def project(offline: Project, bootstrap: str, instance_files: Path) -> Project:
    """A project on this session's Kafka."""
    shutil.copytree(instance_files, offline.folder / ".dagster")
    return Project(offline.folder, bootstrap)
