from __future__ import annotations

import json
import threading
from itertools import islice

from kafka_assets.dev.sample import feed, orders, produce_orders
from kafka_assets_tests.support.kafka import read_all, wait_until, watermarks


def _written(bootstrap, name):
    return sum(end for _, end in watermarks(bootstrap, name).values())


def test_same_seed_gives_the_same_orders():
    """The orders of a seed are always the same, those of another differ, and each is JSON keyed by its id."""
    first = list(islice(orders(seed=1), 1000))
    assert first == list(islice(orders(seed=1), 1000))
    assert first != list(islice(orders(seed=2), 1000))
    for number, (key, value) in enumerate(first):
        order = json.loads(value)
        assert key == b"%d" % number
        assert order.keys() == {"id", "customer", "amount", "currency", "status", "created_at"}
        assert order["id"] == number


def test_orders_are_dealt_out_over_the_partitions(bootstrap, topic):
    """Every order arrives once, in the partition whose turn it is."""
    name = topic(partitions=3)
    produce_orders(bootstrap, name, 3000, partitions=3)
    messages = read_all(bootstrap, name)
    assert [end for _, end in watermarks(bootstrap, name).values()] == [1000] * 3
    assert sorted((message.key(), message.value()) for message in messages) == sorted(islice(orders(), 3000))
    assert all(int(message.key()) % 3 == message.partition() for message in messages)


def test_feed_goes_on_from_what_is_there_until_told_to_stop(bootstrap, topic):
    """A feed started again continues the ids without a gap or a repetition."""
    name = topic(partitions=2)
    for least in (100, 300):
        stop = threading.Event()
        feeder = threading.Thread(target=feed, args=(bootstrap, name, 2000, stop))
        feeder.start()
        wait_until(lambda least=least: _written(bootstrap, name) >= least, f"{least} orders")
        stop.set()
        feeder.join()
    keys = sorted(int(message.key()) for message in read_all(bootstrap, name))
    assert keys == list(range(len(keys)))
