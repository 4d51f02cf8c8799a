"""What the tests of planning plan: one topic, few words."""

from __future__ import annotations

from kafka_assets.offsets import TopicPartition
from kafka_assets.planning import Limits, LogBounds, Plan, Policy, Position, plan

NOW = 1_000_000.0
SKIP = Policy(on_data_loss="skip")
RESTART = Policy(on_topic_recreated="restart")


def tp(partition: int, topic: str = "orders") -> TopicPartition:
    return TopicPartition(topic, partition)


def log(
    start: int, end: int, hw: int | None = None, *, topic_id: str | None = "A", epoch: int | None = None
) -> LogBounds:
    return LogBounds(start, end, end if hw is None else hw, topic_id, epoch)


def at(
    until: int, *, start: int = 0, incarnation: int = 0, topic_id: str | None = "A", epoch: int | None = None
) -> Position:
    return Position(topic_id, incarnation, start, until, epoch)


def plan_of(positions, bounds, *, limit=100, policy=None, **options) -> Plan:
    """Plan with defaults under which nothing waits; lists are partitions 0, 1, ... of the topic `orders`."""
    if isinstance(positions, list):
        positions = {tp(i): at(until) for i, until in enumerate(positions)}
    if isinstance(bounds, list):
        bounds = {tp(i): log(0, end) for i, end in enumerate(bounds)}
    defaults = {
        "starts": {},
        "limits": Limits(max_records_per_batch=limit),
        "policy": policy or Policy(),
        "now": NOW,
        "last_planned_at": None,
        "open_batches": 0,
    }
    return plan(positions, bounds, **(defaults | options))


def taken(batch) -> dict[int, tuple[int, int]]:
    """The offsets of each partition in a batch of one topic."""
    assert len({planned.range.topic for planned in batch}) == 1
    return {p.range.partition: (p.range.from_offset, p.range.until_offset) for p in batch}


def sizes(plan: Plan) -> list[int]:
    return [sum(planned.range.size for planned in batch) for batch in plan.batches]
