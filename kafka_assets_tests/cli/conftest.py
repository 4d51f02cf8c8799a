from __future__ import annotations

from typing import TYPE_CHECKING

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


@pytest.fixture
def project(offline: Project, bootstrap: str) -> Project:
    """A project on this session's Kafka."""
    return Project(offline.folder, bootstrap)
