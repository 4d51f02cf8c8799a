from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from kafka_assets_tests.orchestration.support import STREAM, Bench, make_storage, write_streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def new_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an instance that is new; to make its databases takes longer than to copy them."""
    folder = tmp_path_factory.mktemp("instance")
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(folder)) as made:
        make_storage(made)
    return folder


@pytest.fixture
def home(tmp_path: Path, new_home: Path) -> Path:
    """The instance's folder."""
    return shutil.copytree(new_home, tmp_path / "home")


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(home)) as opened:
        yield opened


@pytest.fixture
def bench(tmp_path: Path, instance: dg.DagsterInstance, bootstrap: str) -> Callable[..., Bench]:
    """`bench(topics=[...], max_records_per_batch=10)`: a project with one stream of these options."""

    def make(
        *, build: dict[str, Any] | None = None, kafka: dict[str, str] | None = None, **options: Any
    ) -> Bench:
        options = {"interval": "1ms", "stall_timeout": "15s", **options}
        properties = {"bootstrap.servers": bootstrap, **(kafka or {})}
        file = write_streams(tmp_path, properties.pop("bootstrap.servers"), {STREAM: options}, **properties)
        return Bench(file, instance, **(build or {}))

    return make
