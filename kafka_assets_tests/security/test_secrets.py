"""No secret is where anybody but the streams file and the environment put it."""

from __future__ import annotations

import logging
import sqlite3
import sys
import traceback
import zlib
from contextlib import closing
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

import dagster as dg
import duckdb
import pytest

from kafka_assets.config import Topics
from kafka_assets.errors import BrokerAuthError
from kafka_assets.fetch import read_ranges
from kafka_assets.log import KafkaLog
from kafka_assets.offsets import OffsetRange
from kafka_assets_tests.cli.support import DAGSTER
from kafka_assets_tests.orchestration.support import Bench
from kafka_assets_tests.security.support import unsecured_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kafka_assets_tests.cli.support import Project
    from kafka_assets_tests.security.support import Certificate, GuardedKafka

PLANTED = "Pl4nted"
"""Is part of every secret here, so that one search finds any of them."""

PASSWORD = f"{PLANTED}-sasl-password"
WRONG_PASSWORD = f"{PLANTED}-wrong-password"
KEY_PASSWORD = f"{PLANTED}-key-password"
CLIENT_SECRET = f"{PLANTED}-client-secret"
RAISED = f"{PLANTED}-in-an-exception"
IN_THE_ENVIRONMENT = f"{PLANTED}-of-another-program"

SEARCHED = {"names", "files", "cells", "compressed", "rows"}
DEBUGGED = f"""{DAGSTER}
python_logs: {{python_log_level: DEBUG, managed_python_loggers: [root]}}
"""


@dataclass
class Search:
    """Looks for secrets in all that was written.

    Attributes:
        folder: What is in it is looked at, the streams file left out.
        tokens: Tokens given out meanwhile, which are secrets too.
        seen: The number of places looked at, by their kind.
    """

    folder: Path
    tokens: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)

    def look(self, kind: str, where: str, text: str | bytes) -> None:
        """Fail if a text holds a secret."""
        self.seen[kind] = self.seen.get(kind, 0) + 1
        data = text.encode(errors="surrogateescape") if isinstance(text, str) else text
        for secret in (PLANTED, *self.tokens):
            at = data.find(secret.encode())
            assert at < 0, f"{where}: ...{data[max(0, at - 300) : at + 100]!r}"

    def files(self) -> None:
        """Look at every file, its name, and into the databases, whose pages may be compressed."""
        for path in self.folder.rglob("*"):
            self.look("names", "a name", str(path.relative_to(self.folder)))
            if path.is_file() and path.name != "streams.yaml":
                content = path.read_bytes()
                self.look("files", str(path), content)
                if content.startswith(b"SQLite format 3\0"):
                    self._sqlite(path)
        for path in self.folder.glob("*.duckdb"):
            self._duckdb(path)

    def _sqlite(self, path: Path) -> None:
        with closing(sqlite3.connect(path)) as database:
            for (table,) in database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall():
                for row in database.execute(f'SELECT * FROM "{table}"'):  # noqa: S608  names of its own
                    for cell in row:
                        self.look("cells", f"{path} {table}", cell if isinstance(cell, bytes) else str(cell))
                        if isinstance(cell, bytes) and cell[:1] == b"\x78":
                            self.look("compressed", f"{path} {table}", zlib.decompress(cell))

    def _duckdb(self, path: Path) -> None:
        with duckdb.connect(str(path), read_only=True) as database:
            tables = database.execute(
                "SELECT schema_name, table_name FROM duckdb_tables() UNION ALL"
                " SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal"
            ).fetchall()
            for schema, table in tables:
                for row in database.table(f'"{schema}"."{table}"').fetchall():
                    self.look("rows", f"{schema}.{table}", repr(row))


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """What is told of the tokens that `secret_tokens:get` gives out; `secret_tokens:fail` gives none."""
    found = Search(tmp_path)
    module = ModuleType("secret_tokens")

    def get(config: str) -> tuple[str, float]:
        assert config == CLIENT_SECRET
        token, expires = unsecured_token("bearer", 600)
        found.tokens.append(token.removesuffix("."))
        return token, expires

    def fail(config: str) -> tuple[str, float]:
        raise RuntimeError(f"{RAISED} {config}")

    module.get, module.fail = get, fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("SOME_OTHER_SECRET", IN_THE_ENVIRONMENT)
    return found


@pytest.fixture
def all_logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file with whatever any logger of this process says, at DEBUG, with tracebacks."""
    file = tmp_path_factory.mktemp("logs") / "all.log"
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s %(args)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield file
    root.setLevel(level)
    root.removeHandler(handler)
    handler.close()


@pytest.fixture
def write(
    guarded: GuardedKafka, certificates: dict[str, Certificate], orders: Callable[..., str], project: Project
) -> Callable[..., None]:
    """`write(function="secret_tokens:get")`: two streams full of secrets, and with librdkafka talking of both."""
    guarded.add_user("keeper", PASSWORD)
    first, second = orders("keeper"), orders("bearer")

    def make(function: str = "secret_tokens:get") -> None:
        scram = {
            **guarded.scram("keeper", "${KEEPER_PASSWORD}"),
            "bootstrap.servers": guarded.address("BOTH"),
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(certificates["broker"].pem),
            "ssl.key.password": KEY_PASSWORD,
        }
        streams = {
            "orders": {"topics": [first], "kafka": scram, "interval": "1ms", "stall_timeout": "20s"},
            "bearers": {
                "topics": [second],
                "kafka": guarded.bearer(function, CLIENT_SECRET),
                "interval": "1ms",
            },
        }
        project.write(streams, kafka={"debug": "conf,security"})

    make()
    return make


def test_the_search_finds_a_secret_wherever_it_is(tmp_path: Path) -> None:
    """In a plain file, in a file's name, in a database and in what it holds compressed, the search fails."""
    places: list[tuple[str, Callable[[Path], object]]] = [
        ("file", lambda folder: (folder / "a").write_text(f"x{PASSWORD}y")),
        ("name", lambda folder: (folder / PASSWORD).touch()),
        ("rows", lambda folder: _keep(folder, PASSWORD)),
        ("compressed", lambda folder: _keep(folder, zlib.compress(PASSWORD.encode()))),
    ]
    for name, put in places:
        folder = tmp_path / name
        folder.mkdir()
        Search(folder).files()
        put(folder)
        with pytest.raises(AssertionError, match=PLANTED):
            Search(folder).files()


def _keep(folder: Path, value: str | bytes) -> None:
    with closing(sqlite3.connect(folder / "a.db")) as database:
        database.execute("CREATE TABLE t (c)")
        database.execute("INSERT INTO t VALUES (?)", [value])
        database.commit()


def test_no_secret_is_in_anything_that_librdkafka_says(
    guarded: GuardedKafka, orders: Callable[..., str], search: Search, all_logs: Path
) -> None:
    """With `debug: all`, where librdkafka tells each step of a login, no secret and no token is told."""
    guarded.add_user("keeper", PASSWORD)
    topic = orders("keeper", "bearer")
    scram = {**guarded.scram("keeper", PASSWORD), "ssl.key.password": KEY_PASSWORD}
    for kafka in (scram, guarded.bearer("secret_tokens:get", CLIENT_SECRET)):
        ranges = [OffsetRange(topic, 0, 0, 5)]
        assert sum(map(len, read_ranges({**kafka, "debug": "all"}, ranges, timeout=30))) == 5
    with (
        pytest.raises(BrokerAuthError),
        KafkaLog({**scram, "sasl.password": WRONG_PASSWORD, "debug": "all"}) as log,
    ):
        log.topic_partitions(Topics((topic,)))
    told = all_logs.read_bytes()
    assert b"SCRAM" in told
    assert b"OAUTHBEARER" in told
    search.look("logs", str(all_logs), told)


def test_no_secret_is_in_anything_that_commands_leave(
    project: Project,
    write: Callable[..., None],
    search: Search,
    all_logs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Commands that succeed and fail, for people and with --json: neither output, logs, events nor files show one."""
    said = []
    monkeypatch.setenv("KEEPER_PASSWORD", PASSWORD)
    said.append(project.text("plan"))
    answer = project("ingest")
    assert [one["rows"] for one in answer["streams"].values()] == [20, 20]
    for stream, one in answer["streams"].items():
        said.append(str(project("replay", stream, *one["batches"])))
    said += [str(answer), project.text("status"), project.text("verify"), str(project("version"))]
    monkeypatch.setenv("KEEPER_PASSWORD", WRONG_PASSWORD)
    write("secret_tokens:fail")
    for command in ("plan", "ingest", "status"):
        said.append(str(project(command, exit_code=4)))
        said.append(project.text(command, exit_code=4))
    monkeypatch.delenv("KEEPER_PASSWORD")
    said.append(project.text("plan", exit_code=2))
    out, err = capfd.readouterr()
    for text in (*said, out, err):
        search.look("outputs", "an output", text)
    search.look("logs", str(all_logs), all_logs.read_bytes())
    search.files()
    assert b"SASL" in all_logs.read_bytes()
    assert len(search.tokens) > 2
    assert search.seen.keys() == {"outputs", "logs", *SEARCHED}


def test_no_secret_is_in_anything_that_ticks_and_runs_leave(
    project: Project,
    write: Callable[..., None],
    search: Search,
    all_logs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Ticks and runs in an instance that keeps every log line: runs that succeed, and that fail at a login."""
    (project.folder / "dagster.yaml").write_text(DEBUGGED)
    with dg.DagsterInstance.from_config(str(project.folder)) as instance:
        monkeypatch.setenv("KEEPER_PASSWORD", PASSWORD)
        for stream in ("orders", "bearers"):
            bench = Bench(project.file, instance, stream)
            tick = bench.tick()
            monkeypatch.setenv("KEEPER_PASSWORD", WRONG_PASSWORD)
            write("secret_tokens:fail")
            failing = Bench(project.file, instance, stream)
            run = failing.run(tick.requests[0])
            assert failing.failure(run).startswith("BROKER_AUTH")
            assert "BROKER_AUTH" in str(failing.batch(tick.batches[0]).last_error)
            with pytest.raises(BrokerAuthError) as caught:
                failing.tick()
            search.look("errors", "an error", "".join(traceback.format_exception(caught.value)))
            monkeypatch.setenv("KEEPER_PASSWORD", PASSWORD)
            write()
            assert bench.click(tick.batches[0]).is_success
            shown = [
                repr(bench.runtime),
                repr(bench.config),
                repr(bench.stream.kafka),
                str(bench.definitions),
            ]
            for text in shown:
                search.look("reprs", "a repr", text)
        for record in instance.get_run_records():
            search.look("runs", "a run", repr(record))
            for event in instance.all_logs(record.dagster_run.run_id):
                search.look("events", "an event", f"{event!r} {event.dagster_event!r}")
    for text in capfd.readouterr():
        search.look("outputs", "an output", text)
    search.look("logs", str(all_logs), all_logs.read_bytes())
    search.files()
    assert search.seen.keys() == {"outputs", "logs", "errors", "reprs", "runs", "events", *SEARCHED}
