from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from kafka_assets_tests.cli.conftest import instance_files, offline
from kafka_assets_tests.security.support import GuardedKafka, make_certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kafka_assets_tests.cli.support import Project
    from kafka_assets_tests.security.support import Certificate

__all__ = ["instance_files", "offline"]


@pytest.fixture(scope="package")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificate]:
    """The certificates of the broker and of a client, each its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    return {name: make_certificate(folder, name) for name in ("broker", "client")}


@pytest.fixture(scope="package")
def guarded(certificates: dict[str, Certificate]) -> Iterator[GuardedKafka]:
    """The one Kafka of these tests."""
    with GuardedKafka(certificates["broker"], certificates["client"]) as started:
        yield started


@pytest.fixture
def project(offline: Project, instance_files: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose streams name their brokers themselves."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    shutil.copytree(instance_files, offline.folder / ".dagster")
    return offline


@pytest.fixture
def orders(guarded: GuardedKafka, request: pytest.FixtureRequest) -> Callable[..., str]:
    """`orders("user", operations)` makes a topic of 20 records that this user may do something with."""
    return lambda *users, **more: guarded.fill(request.node.name, users, **more)
