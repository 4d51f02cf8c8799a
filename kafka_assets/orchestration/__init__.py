"""Streams as Dagster assets: the only modules that import Dagster, beside `kafka_assets.definitions`."""
