from __future__ import annotations

import json
import os
import subprocess
import sys

import dagster as dg
import pytest

import kafka_assets
from kafka_assets.errors import BatchUnknownError
from kafka_assets.offsets import OffsetRange
from kafka_assets.orchestration.naming import PARTITION_TAG
from kafka_assets_tests.orchestration.support import STREAM, Bench, write_streams
from kafka_assets_tests.support.kafka import values

SECRETIVE = "${A_SECRET_THAT_IS_NOT_SET}"

STREAMS = {
    "orders": {"topics": ["orders", "returns"], "table": "lake.orders"},
    "clicks": {"topic_pattern": r"clicks\..*", "enabled": False, "format": "utf8"},
    "two": {"assign": {"orders": [0]}},
}


@pytest.fixture
def streams(tmp_path):
    """A streams file whose brokers are not there, nor is the secret it names."""
    return write_streams(tmp_path, "127.0.0.1:1", STREAMS, **{"sasl.password": SECRETIVE})


def test_every_stream_has_its_asset_partitions_sensor_checks_and_topics(streams, tmp_path):
    """Names are those of the contract; nothing is opened, resolved or written to load them."""
    defs = kafka_assets.build_definitions(streams, prefix=["raw"])
    repository = defs.get_repository_def()

    graph = repository.asset_graph
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {
        "raw/lake/orders",
        "raw/clicks",
        "raw/two",
        "kafka/orders",
        "kafka/returns",
        "kafka/clicks",
    }
    orders = graph.get(dg.AssetKey(["raw", "lake", "orders"]))
    assert orders.partitions_def.name == "raw_orders_batches"
    assert orders.parent_keys == {dg.AssetKey(["kafka", "orders"]), dg.AssetKey(["kafka", "returns"])}
    assert {key.name for key in orders.check_keys} == {"coverage", "lag"}
    assert orders.metadata["dagster/table_name"] == "lake.orders"
    sensors = {sensor.name: sensor.default_status for sensor in repository.sensor_defs}
    assert sensors == {
        "orders_sensor": dg.DefaultSensorStatus.RUNNING,
        "clicks_sensor": dg.DefaultSensorStatus.STOPPED,
        "two_sensor": dg.DefaultSensorStatus.RUNNING,
    }
    assert [file.name for file in tmp_path.iterdir()] == ["streams.yaml"]


def test_definitions_set_nothing_of_the_code_location(streams):
    """Executor, loggers and resources stay those of whoever merges them; two files merge too."""
    defs = kafka_assets.build_definitions(streams)
    assert (defs.executor, defs.loggers, defs.resources) == (None, None, None)

    other = streams.parent / "other"
    other.mkdir()
    more = write_streams(other, "127.0.0.1:1", {"payments": {"topics": ["orders_paid"]}})
    merged = dg.Definitions.merge(defs, kafka_assets.build_definitions(more))
    dg.Definitions.validate_loadable(merged)


def test_the_public_helpers_agree_with_the_asset(bench, topic, produce):
    """`batches_def` is the asset's partitions definition, `offset_ranges` what its batch was planned as."""
    name = topic()
    produce(name, values(7))
    here = bench(topics=[name], build={"prefix": ("raw",)})
    (batch,) = here.tick().batches

    found = kafka_assets.batches_def(STREAM, config=here.config.path, prefix=["raw"])
    assert found == here.definitions.get_repository_def().asset_graph.get(here.names.asset_key).partitions_def
    ranges = kafka_assets.offset_ranges(STREAM, batch, config=here.config.path)
    assert ranges == (OffsetRange(name, 0, 0, 7),)
    with pytest.raises(BatchUnknownError):
        kafka_assets.offset_ranges(STREAM, "20200101T000000000Z", config=here.config.path)


THEIRS = '''
import dagster as dg
import kafka_assets
from kafka_assets import batches
from kafka_assets.slicing import slice_ranges

# Two slices of a small batch.
batches.OFFSETS_WORTH_A_SLICE = 10
batches.slice_ranges = lambda ranges, _: slice_ranges(ranges, 2, smallest=1)


class TablesOnly(dg.IOManager):
    """As some are: made for data frames, and nothing else."""

    def handle_output(self, context, obj):
        raise NotImplementedError(f"no table: {obj!r}")

    def load_input(self, context):
        raise NotImplementedError


@dg.asset(deps=["orders"], partitions_def=kafka_assets.batches_def("orders"))
def sizes(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    ranges = kafka_assets.offset_ranges("orders", context.partition_key)
    with kafka_assets.connect() as connection:
        rows = connection.execute(
            "SELECT count(*) FROM orders WHERE _kafka_batch = ?", [context.partition_key]
        ).fetchall()
    return dg.MaterializeResult(metadata={"offsets": sum(one.size for one in ranges), "rows": rows[0][0]})


defs = dg.Definitions.merge(
    kafka_assets.build_definitions(fetch_groups=2),
    dg.Definitions(
        assets=[sizes],
        jobs=[dg.define_asset_job("both", dg.AssetSelection.assets("orders", "sizes").without_checks())],
        resources={"io_manager": TablesOnly()},
        executor=dg.multiprocess_executor.configured(
            {"start_method": {"forkserver": {"preload_modules": ["kafka_assets.orchestration.assets"]}}}
        ),
    ),
)
'''


def test_a_location_of_ones_own_with_processes_for_steps(bench, topic, produce, tmp_path, home):
    """Two fetch steps in processes, an I/O manager that takes tables only, an asset computed per batch."""
    name = topic(2)
    produce(name, values(10), 0)
    produce(name, values(10), 1)
    here = bench(topics=[name])
    (batch,) = here.tick().batches
    (tmp_path / "theirs.py").write_text(THEIRS)

    done = subprocess.run(
        [
            *(sys.executable, "-m", "dagster", "job", "execute", "-f", "theirs.py", "-j", "both"),
            *("--tags", json.dumps({PARTITION_TAG: batch})),
        ],
        cwd=tmp_path,
        env={**os.environ, "DAGSTER_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )

    instance = here.instance
    assert done.returncode == 0, done.stderr[-3000:]
    assert here.rows() == (20, 20)
    (run,) = instance.get_runs()
    steps = {stat.step_key for stat in instance.get_run_step_stats(run.run_id)}
    assert {"orders.orders_fetch[0]", "orders.orders_fetch[1]"} <= steps
    (record,) = instance.fetch_materializations(dg.AssetKey("sizes"), limit=2).records
    metadata = record.asset_materialization.metadata
    assert (metadata["offsets"].value, metadata["rows"].value) == (20, 20)
    assert not (here.warehouse.staging / STREAM / batch).exists()
    assert Bench(here.config.path, instance).tick().checks("coverage")[0].passed
