from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from kafka_assets.cli.app import NOT_YET
from kafka_assets.cli.session import Session
from kafka_assets.dev.broker import LocalKafka
from kafka_assets.errors import KafkaAssetsError
from kafka_assets_tests.cli.support import NOWHERE, Project, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kafka_assets_tests.conftest import TopicFactory
    from kafka_assets_tests.support.kafka import Place

    Produce = Callable[..., list[Place]]

COMMANDS = ("plan", "ingest", "status", "verify")
STREAMS: dict[str, dict[str, Any]] = {"orders": {"topics": ["orders"]}}


def _files(folder: Path) -> dict[Path, bytes]:
    """Every file but Dagster's and the lock files."""
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and ".dagster" not in path.parts
        and path.suffix not in {".lock", ".turn", ".writers"}
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("streams: [", "not valid YAML"),
        ("warehouse: {uri: 'duckdb:///w', lock_timout: 1s}\nstreams: {a: {topics: [a]}}", "lock_timeout"),
        ("streams: {a: {topics: [a], max_records_per_batch: lots}}", "streams.a.max_records_per_batch"),
        (
            "warehouse: {uri: 'duckdb:///${NOT_SET_ANYWHERE}'}\nstreams: {a: {topics: [a]}}",
            "NOT_SET_ANYWHERE",
        ),
        ("streams: {a: {topics: [a], topic_pattern: b}}", "streams.a"),
        ("streams: {a: {topics: [a], format: avro}}", "not available in this version"),
        ("kafka: {enable.auto.commit: true}\nstreams: {a: {topics: [a]}}", "kafka.enable.auto.commit"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_streams_file_that_cannot_be_used(offline: Project, command: str, text: str, said: str) -> None:
    """Every command refuses a bad streams file with its place in it, exit 2, and touches nothing."""
    if "warehouse:" not in text:
        text = f"warehouse: {{uri: 'duckdb:///w.duckdb'}}\n{text}"
    offline.file.write_text(text)
    before = _files(offline.folder)
    code, message = error_of(offline(command, exit_code=2))
    assert code == "CONFIG_INVALID"
    assert said in message
    assert _files(offline.folder) == before


@pytest.mark.parametrize("command", [*COMMANDS, "replay orders x"])
def test_no_streams_file(offline: Project, command: str) -> None:
    """Without a streams file the error names the place looked at."""
    code, message = error_of(offline(*command.split(), exit_code=2))
    assert (code, str(offline.file) in message) == ("CONFIG_INVALID", True)


def test_a_variable_under_kafka_is_asked_for_on_use(offline: Project) -> None:
    """A missing variable under `kafka` stops what needs the brokers, and nothing else."""
    offline.write(STREAMS, kafka={"sasl.password": "${NOT_SET_ANYWHERE}"})
    for command in ("plan", "status", "ingest"):
        code, message = error_of(offline(command, exit_code=2), "orders")
        assert code == "CONFIG_INVALID"
        assert "kafka.sasl.password" in message
        assert "NOT_SET_ANYWHERE" in message
    assert offline("verify")["ok"]
    assert not offline.warehouse.exists()


def test_a_command_that_is_not_there_yet_is_refused(offline: Project) -> None:
    """It is refused with a plain message, whatever is typed after it, as JSON too."""
    for name in NOT_YET:
        for more in ([], ["orders", "--yes", "--help"]):
            code, message = error_of(offline(name, *more, exit_code=2))
            assert (code, "not available in this version" in message) == ("USAGE_INVALID", True)
    assert not offline.warehouse.exists()


@pytest.mark.parametrize(
    "words",
    [
        "frobnicate",
        "ingest --no-such-option",
        "ingest --timeout soon",
        "ingest --timeout -5s",
        "ingest --timeout",
        "replay",
        "replay orders",
        "version more",
    ],
)
def test_a_command_line_that_has_no_meaning(offline: Project, words: str) -> None:
    """It is USAGE_INVALID, exit 2, as JSON too, and on stderr for people."""
    offline.write(STREAMS)
    code, message = error_of(offline(*words.split(), exit_code=2))
    assert (code, bool(message)) == ("USAGE_INVALID", True)
    assert offline.text(*words.split(), exit_code=2) == ""


@pytest.mark.parametrize(
    "words", ["plan ordrs", "ingest ordrs", "status ordrs", "verify ordrs", "replay ordrs x"]
)
def test_an_unknown_stream_is_told_its_nearest_name(offline: Project, words: str) -> None:
    """STREAM_UNKNOWN names the stream that was probably meant."""
    offline.write(STREAMS)
    code, message = error_of(offline(*words.split(), exit_code=2))
    assert (code, "did you mean orders?" in message) == ("STREAM_UNKNOWN", True)


def test_an_unreachable_broker(project: Project, topic: TopicFactory, produce: Produce) -> None:
    """BROKER_UNREACHABLE with the address, exit 4; `status` gives the ledger's part beside it."""
    name = topic()
    produce(name, [b"x"])
    project.write({"orders": {"topics": [name]}})
    project("ingest")
    Project(project.folder, NOWHERE).write({"orders": {"topics": [name]}})
    started = {command: project.start(command, "--json") for command in ("plan", "status", "ingest")}
    answers = {}
    for command, process in started.items():
        out, err = process.communicate(timeout=100)
        assert (process.returncode, err) == (4, "")
        answers[command] = json.loads(out)
        code, message = error_of(answers[command], "orders")
        assert (code, NOWHERE in message) == ("BROKER_UNREACHABLE", True)
    status = answers["status"]["streams"]["orders"]
    assert status["batches"]["committed"] == 1
    (row,) = status["partitions"]
    assert (row["committed_until"], row["end"], row["lag"]) == (1, None, None)


class _GuardedKafka(LocalKafka):
    """A broker with a second listener that asks for a password."""

    def __init__(self) -> None:
        super().__init__()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.guarded = f"127.0.0.1:{free.getsockname()[1]}"

    def _settings(self, node: int) -> dict[str, str]:
        settings = super()._settings(node)
        for key in ("listeners", "advertised.listeners"):
            settings[key] += f",GUARDED://{self.guarded}"
        settings["listener.security.protocol.map"] += ",GUARDED:SASL_PLAINTEXT"
        settings["sasl.enabled.mechanisms"] = "PLAIN"
        settings["listener.name.guarded.plain.sasl.jaas.config"] = (
            "org.apache.kafka.common.security.plain.PlainLoginModule required"
            ' user_reader="the-right-password";'
        )
        return settings


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with _GuardedKafka() as kafka:
        yield kafka.guarded


def test_wrong_credentials(offline: Project, guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """BROKER_AUTH, exit 4, says that authentication failed, never with which password; the right one is let in."""
    secret = "not-the-right-password"  # noqa: S105  of this test alone
    monkeypatch.setenv("PASSWORD_OF_THIS_TEST", secret)
    offline.write(
        {"orders": {"topic_pattern": "none"}},
        kafka={
            "bootstrap.servers": guarded,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanisms": "PLAIN",
            "sasl.username": "reader",
            "sasl.password": "${PASSWORD_OF_THIS_TEST}",
        },
    )
    for command in ("plan", "status", "ingest"):
        answer = offline(command, exit_code=4)
        code, message = error_of(answer, "orders")
        assert code == "BROKER_AUTH"
        assert "uthentication" in message
        assert guarded in message
        assert secret not in json.dumps(answer)
    assert not offline.warehouse.exists()
    monkeypatch.setenv("PASSWORD_OF_THIS_TEST", "the-right-password")
    assert offline("plan")["streams"]["orders"]["error"] is None


def _text_file(path: Path) -> None:
    path.write_text("not a database, but a text that is longer than a header would be\n" * 100)


def _sqlite_file(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE a (b)")
    connection.close()


@pytest.mark.parametrize("make", [_text_file, _sqlite_file, lambda path: path.mkdir()])
def test_a_warehouse_that_is_no_duckdb_file(offline: Project, make: Callable[[Path], None]) -> None:
    """WAREHOUSE_INVALID, exit 2, naming the file, which stays as it was."""
    make(offline.warehouse)
    offline.write(STREAMS)
    before = _files(offline.folder)
    for command in COMMANDS:
        code, message = error_of(offline(command, exit_code=2), "orders")
        assert (code, str(offline.warehouse) in message) == ("WAREHOUSE_INVALID", True)
    assert _files(offline.folder) == before


@pytest.mark.parametrize("uri", ["duckdb:///a_file/w.duckdb", "duckdb:////proc/w.duckdb"])
def test_a_folder_that_cannot_be_written(
    project: Project, topic: TopicFactory, produce: Produce, uri: str
) -> None:
    """`ingest` says which folder cannot be made, exit 2, before it has read anything."""
    name = topic()
    produce(name, [b"x"])
    (project.folder / "a_file").write_text("")
    project.write({"orders": {"topics": [name]}}, uri=uri)
    answer = project("ingest", exit_code=2)
    code, message = error_of(answer, "orders")
    assert (code, "w.duckdb" in message) == ("WAREHOUSE_INVALID", True)
    assert answer["streams"]["orders"]["batches"] == []
    assert (project.folder / "a_file").read_text() == ""


def test_a_warehouse_that_another_holds(project: Project, topic: TopicFactory, produce: Produce) -> None:
    """After `lock_timeout` WAREHOUSE_LOCKED, exit 4, says which process holds the file; then all goes on."""
    name = topic()
    produce(name, [b"x"])
    project.write({"orders": {"topics": [name]}}, lock_timeout="500ms")
    project("ingest")
    produce(name, [b"y"])
    program = (
        "import duckdb, sys; c = duckdb.connect('w.duckdb'); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=project.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for command in COMMANDS:
            code, message = error_of(project(command, exit_code=4), "orders")
            assert (code, f"process {holder.pid}" in message) == ("WAREHOUSE_LOCKED", True)
        holder.communicate()
    assert project("ingest")["streams"]["orders"]["records"] == 1


def test_no_dagster_instance(offline: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ingest` without an instance to record runs in is refused, and so is one that Dagster cannot use."""
    offline.write(STREAMS)
    settings = offline.folder / "dagster.yaml"
    settings.unlink()
    code, message = error_of(offline("ingest", exit_code=2))
    assert (code, "DAGSTER_HOME" in message, str(offline.folder) in message) == ("USAGE_INVALID", True, True)
    for broken in ("storage: [", "storag: {}"):
        settings.write_text(broken)
        code, message = error_of(offline("ingest", exit_code=2))
        assert (code, str(settings) in message) == ("CONFIG_INVALID", True)
    settings.unlink()
    for home in ("relative", str(offline.folder / "not_there")):
        monkeypatch.setenv("DAGSTER_HOME", home)
        code, message = error_of(offline("ingest", exit_code=2))
        assert (code, "DAGSTER_HOME" in message) == ("CONFIG_INVALID", True)
    assert {path.name for path in offline.folder.iterdir()} == {"streams.yaml"}


def test_what_nobody_expected_is_an_answer_too(
    offline: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error without a code is RUN_FAILED, exit 1, in the JSON of its stream, its traceback on stderr."""

    def explode(*_: object, **__: object) -> None:
        raise duckdb.InternalException("of a kind nobody foresaw")

    monkeypatch.setattr("kafka_assets.ledger.positions_report", explode)
    offline.write({"one": {"topics": ["a"]}, "two": {"topics": ["b"]}})
    answer = offline("status", exit_code=1)
    assert [error_of(answer, name)[0] for name in ("one", "two")] == ["RUN_FAILED", "RUN_FAILED"]
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr("kafka_assets.cli.commands.version_of", explode)
    code, message = error_of(offline("version", exit_code=1))
    assert (code, "of a kind nobody foresaw" in message) == ("RUN_FAILED", True)


@pytest.mark.parametrize(
    ("codes", "worst"),
    [((0, 4), 4), ((4, 3), 3), ((3, 1, 4), 1), ((1, 2, 3, 4), 2), ((0, 0), 0), ((2, 0), 2), ((), 0)],
)
def test_the_worst_exit_code_of_several(codes: tuple[int, ...], worst: int) -> None:
    """The order from the worst is 2, 1, 3, 4, and then 0."""
    session = Session(None, as_json=True, out=None)  # type: ignore[arg-type]  nothing is written
    for code in codes:
        session.worsen(code)
    assert session.exit_code == worst


def test_every_error_has_a_code_of_the_contract() -> None:
    """The codes and their exit codes are those that programs match on."""
    expected = {
        2: "CONFIG_INVALID USAGE_INVALID STREAM_UNKNOWN BATCH_UNKNOWN TABLE_TAKEN WAREHOUSE_INVALID",
        1: "RUN_FAILED PROOF_FAILED DISK_FULL",
        3: "DATA_LOST LOG_TRUNCATED TOPIC_RECREATED TOPIC_MISSING BAD_RECORD RANGE_UNAVAILABLE ATTEMPTS_EXHAUSTED",
        4: "BROKER_UNREACHABLE BROKER_AUTH FETCH_STALLED WAREHOUSE_LOCKED",
    }
    found: dict[int, set[str]] = {}
    for kind in KafkaAssetsError.__subclasses__():
        found.setdefault(kind.exit_code, set()).add(kind.code)
    assert found == {exit_code: set(codes.split()) for exit_code, codes in expected.items()}
