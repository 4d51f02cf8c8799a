"""The command line `kafka-assets`."""

from __future__ import annotations

import gc
from typing import NoReturn

from kafka_assets.collector import RARELY

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    # While modules are imported and runs recorded, the collector of cycles finds next to nothing and takes a tenth
    # of the time.
    gc.set_threshold(RARELY, *gc.get_threshold()[1:])
    from kafka_assets.cli import app  # noqa: PLC0415  all that is imported by it comes after that

    app.main()
