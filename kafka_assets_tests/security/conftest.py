from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kafka_assets_tests.cli.conftest import offline
from kafka_assets_tests.security.support import GuardedKafka, make_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["offline"]


@pytest.fixture(scope="package")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The broker's store, and the PEM file that a client is to trust."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "broker")


@pytest.fixture(scope="package")
def guarded(certificate: tuple[Path, Path]) -> Iterator[GuardedKafka]:
    """The one Kafka of these tests."""
    with GuardedKafka(certificate[0]) as started:
        yield started
