from __future__ import annotations

from kafka_assets_tests.faults.conftest import dagster_home, story, story_on

__all__ = ["dagster_home", "story", "story_on"]
