"""The asset checks of a stream: the coverage proof, and how far behind it is."""

from typing import TYPE_CHECKING

import dagster as dg

from kafka_assets import coverage
from kafka_assets.formats import get_format
from kafka_assets.ledger import has_ledger
from kafka_assets.planner import survey

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb

    from kafka_assets.config import StreamConfig
    from kafka_assets.coverage import PartitionCoverage
    from kafka_assets.orchestration.runtime import Runtime
    from kafka_assets.planner import Survey
    from kafka_assets.planning import Plan, Stop

COVERAGE = "coverage"
LAG = "lag"
MAX_PROBLEMS_SHOWN = 20
CLASSES = ("loaded", "filtered", "quarantined", "undeliverable", "lost", "removed", "pending")


def build_checks(stream: "StreamConfig", runtime: "Runtime") -> list[dg.AssetChecksDefinition]:
    key = runtime.names(stream).asset_key

    @dg.asset_check(
        asset=key,
        name=COVERAGE,
        description=(
            "Every planned offset is in exactly one class (loaded, filtered, quarantined, undeliverable,"
            " lost, removed or pending). The sensor shows once that the ledger's numbers say so; executing"
            " the check also compares them with what the table holds: in a batch's run of that batch, alone"
            " of the whole stream. While a stream is stopped it fails, and says what to do."
        ),
    )
    def coverage_check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        batch = context.partition_key if context.has_partition_key else None
        columns = get_format(stream.format).columns
        with runtime.warehouse.reading() as connection:
            proof = coverage.verify(connection, stream.name, columns, batch=batch)
        return dg.AssetCheckResult(
            passed=proof.ok,
            description="\n".join(proof.problems[:MAX_PROBLEMS_SHOWN])
            or f"every offset accounted for in {len(proof.partitions)} topic-partitions"
            + _set_aside(proof.partitions),
            metadata={
                "proved": f"batch {batch}" if batch else "the whole stream",
                "problems": len(proof.problems),
                "partitions": coverage_table(proof.partitions),
            },
        )

    @dg.asset_check(
        asset=key,
        name=LAG,
        description=(
            "Passes while the batches that may be in flight at once can take all that Kafka has and the"
            " stream has not."
        ),
    )
    def lag_check() -> dg.AssetCheckResult:
        seen = survey(stream, runtime.warehouse, runtime.log(stream))
        passed, metadata = lag_of(stream, seen)
        return dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN, metadata=metadata)

    return [coverage_check, lag_check]


def lag_of(stream: "StreamConfig", seen: "Survey", plan: "Plan | None" = None) -> tuple[bool, dict[str, int]]:
    """Return whether a stream keeps up, and its lag in numbers: as it was seen, or with a plan made since."""
    positions = {**seen.state.positions, **(plan.positions if plan else {})}
    lag = held_back = 0
    for partition, bounds in seen.bounds.items():
        position = positions.get(partition)
        if position is not None:
            lag += max(0, bounds.end - position.planned_until)
            held_back += bounds.high_watermark - bounds.end
    live = [batch.ranges for batch in seen.state.open_batches if batch.kind == "live"]
    open_ranges = live + list(plan.batches if plan else ())
    pending = sum(planned.range.size for ranges in open_ranges for planned in ranges)
    capacity = stream.max_records_per_batch * stream.max_batches_in_flight
    return lag + pending <= capacity, {
        "lag": lag + pending,
        "not_planned": lag,
        "planned_not_committed": pending,
        "held_back_by_open_transactions": held_back,
    }


def ledger_evaluation(
    key: dg.AssetKey, connection: "duckdb.DuckDBPyConnection | None", stream: str
) -> dg.AssetCheckEvaluation:
    """Return the part of the coverage proof that the ledger's numbers give: the classes add up."""
    partitions = coverage.coverage(connection, stream) if connection and has_ledger(connection) else ()
    flaws = [
        f"{one.topic}[{one.partition}] [{one.from_offset}, {one.until_offset}): {accounted} in a class"
        for one in partitions
        if (accounted := sum(getattr(one, name) for name in CLASSES)) != one.until_offset - one.from_offset
    ]
    return dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=COVERAGE,
        passed=not flaws,
        description="\n".join(flaws[:MAX_PROBLEMS_SHOWN])
        or "By the ledger's numbers every planned offset is in one class. Execute this check to compare them"
        " with the table.",
        metadata={
            "proved": "the whole stream, from the ledger alone",
            "problems": len(flaws),
            "partitions": coverage_table(partitions),
        },
    )


def stop_evaluation(key: dg.AssetKey, stops: "Sequence[Stop]") -> dg.AssetCheckEvaluation:
    """Return the failing check that says, at every tick, why a stream stands still and what one can do."""
    return dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=COVERAGE,
        passed=False,
        severity=dg.AssetCheckSeverity.ERROR,
        description="\n".join(f"{stop.code}: {stop.message}" for stop in stops[:MAX_PROBLEMS_SHOWN]),
        metadata={"stops": len(stops)},
    )


def _set_aside(partitions: "Sequence[PartitionCoverage]") -> str:
    quarantined = sum(one.quarantined for one in partitions)
    return f", {quarantined} records of them in quarantine" if quarantined else ""


def coverage_table(partitions: "Sequence[PartitionCoverage]") -> dg.TableMetadataValue:
    schema = dg.TableSchema(
        columns=[
            dg.TableColumn("topic", "string"),
            *(
                dg.TableColumn(name, "int")
                for name in ("incarnation", "partition", "from", "until", *CLASSES)
            ),
        ]
    )
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "topic": one.topic,
                    "incarnation": one.incarnation,
                    "partition": one.partition,
                    "from": one.from_offset,
                    "until": one.until_offset,
                    **{name: getattr(one, name) for name in CLASSES},
                }
            )
            for one in partitions
        ],
        schema=schema,
    )
