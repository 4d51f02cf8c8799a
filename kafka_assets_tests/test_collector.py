from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from kafka_assets.collector import rare_collections


def test_collections_are_rare_until_the_last_user_has_ended():
    """With several at once the first makes them rare, the last leaves the thresholds as they were before."""
    before = gc.get_threshold()
    both, first_ended = Barrier(2, timeout=30), Barrier(2, timeout=30)

    def first() -> int:
        with rare_collections():
            both.wait()
            during = gc.get_threshold()[0]
        first_ended.wait()
        return during

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(first)
        with rare_collections():
            both.wait()
            first_ended.wait()
            assert gc.get_threshold()[0] > before[0]
        assert other.result(30) > before[0]
    assert gc.get_threshold() == before


def test_an_error_leaves_the_thresholds_as_they_were():
    """Whatever ends the block, the collector is as it was."""
    before = gc.get_threshold()
    with pytest.raises(KeyError), rare_collections():
        raise KeyError
    assert gc.get_threshold() == before
