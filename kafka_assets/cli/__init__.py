"""The command line `kafka-assets`."""

from kafka_assets.cli.app import main

__all__ = ["main"]
