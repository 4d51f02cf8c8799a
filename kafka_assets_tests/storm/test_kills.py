from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest

from kafka_assets_tests.storm import points
from kafka_assets_tests.storm.kills import Shares, Storm
from kafka_assets_tests.storm.verbs import Verbs

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(600)
def test_kills_at_named_points_and_random_moments_lose_and_double_nothing(
    tmp_path: Path, bootstrap: str
) -> None:
    """Commands and run workers are killed while records come in; at the end the table is what was produced."""
    outcome = Storm(tmp_path, bootstrap, seed=4, say=print).run(Shares(cli=12, workers=3, services=0))
    assert outcome.holds, outcome
    assert outcome.kills == 15
    assert outcome.records


@pytest.mark.timeout(600)
def test_a_verb_that_is_killed_and_said_again_leads_where_it_leads_undisturbed(
    tmp_path: Path, bootstrap: str
) -> None:
    """Each verb is killed before some of its steps, in its transactions and between the ledger and Dagster."""
    outcome = Verbs(tmp_path, bootstrap, seed=4).run(12)
    assert outcome.holds, outcome.problems
    assert outcome.kills == 12


@pytest.mark.parametrize("name", points.POINTS)
def test_a_kill_point_is_where_it_says(name: str) -> None:
    """The function that a point is before or after exists."""
    point = points.POINTS[name]
    owner: object = importlib.import_module(point.module)
    for part in point.function.split("."):
        owner = getattr(owner, part)
    assert callable(owner)
