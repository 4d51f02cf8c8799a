"""Reading beside those who write: the file is held only while a query runs, and never written."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import duckdb
import pytest

from kafka_assets.config import load_config
from kafka_assets.errors import WarehouseInvalidError
from kafka_assets.reader import Reader, connect
from kafka_assets_tests import warehouse_support as support


@pytest.fixture
def warehouse(tmp_path):
    warehouse = support.warehouse_at(tmp_path)
    with warehouse.writing() as con:
        con.execute("CREATE TABLE t AS SELECT i, 'n' || i AS name FROM range(5) r(i)").fetchall()
    return warehouse


@pytest.fixture
def reader(warehouse):
    with Reader(warehouse) as reader:
        yield reader


@pytest.fixture
def streams_file(tmp_path):
    file = tmp_path / "streams.yaml"
    file.write_text(
        "kafka: {bootstrap.servers: '127.0.0.1:9092'}\n"
        "warehouse: {uri: 'duckdb:///w.duckdb'}\n"
        "streams: {orders: {topics: [orders]}}\n"
    )
    return file


@pytest.mark.usefixtures("warehouse")
def test_connect_finds_the_warehouse_of_a_streams_file(streams_file):
    """The path of a streams file, or what was loaded from it, leads to its warehouse."""
    for config in (streams_file, str(streams_file), load_config(streams_file)):
        with connect(config) as reader:
            assert reader.sql("SELECT count(*) FROM t").fetchone() == (5,)


def test_results_in_every_shape(reader):
    """A result gives rows one by one, in parts, all, and as Arrow."""
    result = reader.execute("SELECT * FROM t ORDER BY i")
    assert result.columns == ["i", "name"]
    assert [column[0] for column in result.description] == ["i", "name"]
    assert result.fetchone() == (0, "n0")
    assert result.fetchmany(2) == [(1, "n1"), (2, "n2")]
    assert result.fetchall() == [(3, "n3"), (4, "n4")]
    assert (result.fetchone(), result.fetchall()) == (None, [])
    assert result.to_arrow_table().num_rows == result.arrow().num_rows == 5


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("SELECT name FROM t WHERE i = ?", [3]),
        ("SELECT name FROM t WHERE i = $1", (3,)),
        ("SELECT name FROM t WHERE i = $i", {"i": 3}),
    ],
)
def test_parameters(reader, sql, params):
    """Parameters go by place or by name."""
    assert reader.query(sql, params).fetchall() == [("n3",)]


def test_values_are_what_python_has_for_them(reader):
    """Sums are integers, times aware, lists and structs lists and dicts; column names may repeat."""
    row = reader.sql(
        "SELECT sum(i), TIMESTAMPTZ '2026-11-23 00:00:00+00', [1], {'a': 1}, NULL::HUGEINT, 1 AS x, 2 AS x"
        " FROM t"
    ).fetchone()
    assert row == (10, datetime(2026, 11, 23, tzinfo=UTC), [1], {"a": 1}, None, 1, 2)
    assert type(row[0]) is int


@pytest.mark.parametrize(
    "sql", ["INSERT INTO t VALUES (9, 'x')", "DROP TABLE t", "CREATE TABLE u (i INTEGER)"]
)
def test_writes_are_refused(reader, sql):
    """The engine refuses whatever would change the file."""
    with pytest.raises(duckdb.InvalidInputException, match="read-only"):
        reader.execute(sql)
    assert reader.sql("SELECT count(*) FROM t").fetchall() == [(5,)]


def test_what_a_query_sets_ends_with_it(reader):
    """Settings and transactions of one query are not those of the next."""
    reader.execute("SET TimeZone = 'Asia/Tokyo'")
    reader.execute("BEGIN")
    reader.execute("USE memory")
    assert reader.execute("SELECT current_setting('TimeZone'), count(*) FROM t").fetchall() == [("UTC", 5)]


def test_a_query_has_the_memory_that_duckdb_takes_by_default(streams_file, warehouse):
    """The limit is of those who write: queries may be over large records. Neither has what the other was given."""
    with duckdb.connect() as plain:
        ((default,),) = plain.execute("SELECT current_setting('memory_limit')").fetchall()
    of_writers = warehouse.memory_limit
    for _ in range(2):
        with connect(streams_file) as reader:
            assert reader.sql("SELECT current_setting('memory_limit')").fetchone() == (default,)
        with warehouse.writing() as con:
            ((limit,),) = con.execute("SELECT current_setting('memory_limit')").fetchall()
        assert (of_writers, limit) == ("1GB", "953.6 MiB")


def test_the_file_is_free_between_queries(reader, warehouse):
    """Another connection writes between two queries, and results held stay as they were."""
    before = reader.sql("FROM t")
    with warehouse.writing(timeout=0) as con:
        con.execute("DELETE FROM t").fetchall()
    assert reader.sql("SELECT count(*) FROM t").fetchall() == [(0,)]
    assert len(before.fetchall()) == 5


def test_an_error_in_a_query_frees_the_file(reader, warehouse):
    """A query that fails leaves the file free and the reader usable."""
    with pytest.raises(duckdb.CatalogException):
        reader.sql("FROM nothing")
    with warehouse.writing(timeout=0):
        pass
    assert reader.sql("SELECT 1").fetchone() == (1,)


def test_threads_share_a_reader(reader):
    """Queries of several threads each get their own answer."""
    found = {}

    def ask(number):
        found[number] = reader.execute("SELECT name FROM t WHERE i = ?", [number]).fetchone()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: (f"n{number}",) for number in range(5)}


def test_no_warehouse_yet(tmp_path):
    """A warehouse that does not exist is told with its path, and not made."""
    reader = Reader(support.warehouse_at(tmp_path / "none"))
    with pytest.raises(WarehouseInvalidError, match=r"w\.duckdb does not exist"):
        reader.sql("SELECT 1")
    assert not (tmp_path / "none").exists()


def test_a_closed_reader(warehouse):
    """A reader that was closed says so."""
    with Reader(warehouse) as reader:
        pass
    with pytest.raises(ValueError, match="closed"):
        reader.sql("SELECT 1")
