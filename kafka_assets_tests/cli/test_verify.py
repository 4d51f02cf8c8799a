from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kafka_assets_tests.cli.support import CLASSES, NOWHERE, Project, error_of
from kafka_assets_tests.support import kafka as support

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka_assets_tests.conftest import TopicFactory


@pytest.fixture
def loaded(
    project: Project, topic: TopicFactory, produce: Callable[..., list[support.Place]]
) -> tuple[Project, str]:
    """A stream of ten records that are in its table, and its topic."""
    name = topic()
    produce(name, support.values(10))
    project.write({"orders": {"topics": [name], "format": "utf8"}})
    project("ingest")
    return project, name


def test_the_proof_needs_neither_broker_nor_dagster(loaded: tuple[Project, str]) -> None:
    """`verify` accounts for every planned offset from the warehouse alone."""
    project, name = loaded
    (project.folder / "dagster.yaml").unlink()
    Project(project.folder, NOWHERE).write({"orders": {"topics": [name], "format": "utf8"}})
    answer = project("verify")
    assert answer["ok"]
    assert answer["streams"]["orders"]["ok"]
    (row,) = answer["streams"]["orders"]["partitions"]
    assert (row["topic"], row["incarnation"], row["from"], row["until"]) == (name, 0, 0, 10)
    assert {key: row[key] for key in CLASSES} == {**dict.fromkeys(CLASSES, 0), "loaded": 10}
    assert "the proof holds" in project.text("verify")


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM orders WHERE _kafka_offset = 4",
        "INSERT INTO orders SELECT * FROM orders WHERE _kafka_offset = 4",
        "UPDATE orders SET value = 'changed' WHERE _kafka_offset = 4",
        "UPDATE orders SET _kafka_offset = 40 WHERE _kafka_offset = 4",
        "UPDATE orders SET _kafka_batch = 'other' WHERE _kafka_offset = 4",
    ],
)
def test_a_table_that_was_changed_does_not_prove(loaded: tuple[Project, str], damage: str) -> None:
    """A row that is missing, double, altered or moved is PROOF_FAILED, exit 1, with the place named."""
    project, name = loaded
    project.alter(damage)
    answer = project("verify", exit_code=1)
    assert not answer["ok"]
    assert not answer["streams"]["orders"]["ok"]
    assert error_of(answer, "orders")[0] == "PROOF_FAILED"
    assert any(f"{name}[0]" in problem for problem in answer["streams"]["orders"]["problems"])
    assert "the proof holds" not in project.text("verify", exit_code=1)


def test_verify_before_anything_was_planned(offline: Project) -> None:
    """With no warehouse nothing is planned, so nothing is missing, and none is made."""
    offline.write({"orders": {"topics": ["orders"]}})
    assert offline("verify")["ok"]
    assert not offline.warehouse.exists()
