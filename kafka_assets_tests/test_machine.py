"""The log does what logs do, processes die between any two steps, and each planned offset is there once."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from kafka_assets_tests.storm.machine import StormMachine

TestStorm = StormMachine.TestCase
TestStorm.__doc__ = "Whatever happens in whatever order, every planned offset is accounted for exactly once."
TestStorm.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
