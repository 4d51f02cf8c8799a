"""From a streams file to Dagster definitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from kafka_assets.config import Config, load_config
from kafka_assets.orchestration.assets import build_asset, topic_assets
from kafka_assets.orchestration.checks import build_checks
from kafka_assets.orchestration.runtime import Runtime
from kafka_assets.orchestration.sensors import build_sensor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike


def build_definitions(
    config: Config | str | PathLike[str] | None = None,
    *,
    prefix: Sequence[str] = (),
    fetch_groups: int = 1,
) -> dg.Definitions:
    """Return assets, partitions, sensors and checks of every stream in a streams file.

    Sets no executor, logger or resource of the code location: merge it into your own definitions.

    Args:
        config: The streams file or its path; by default `$KAFKA_ASSETS_CONFIG`, else `streams.yaml` in the
            working directory.
        prefix: Asset key prefix for all streams.
        fetch_groups: Fetch steps a batch is spread over, a slice each. One is the fastest on one machine; more are
            worth it where the executor runs steps on several.

    Raises:
        ConfigInvalidError: With every problem of the file.
    """
    loaded = config if isinstance(config, Config) else load_config(config)
    return build_definitions_of(Runtime(loaded, tuple(prefix), fetch_groups))


def build_definitions_of(runtime: Runtime) -> dg.Definitions:
    streams = runtime.config.streams.values()
    topics = {spec.key: spec for stream in streams for spec in topic_assets(runtime.names(stream))}
    return dg.Definitions(
        assets=[*topics.values(), *(build_asset(stream, runtime) for stream in streams)],
        asset_checks=[check for stream in streams for check in build_checks(stream, runtime)],
        sensors=[build_sensor(stream, runtime) for stream in streams],
    )
