from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from kafka_assets.cli import progress
from kafka_assets.cli.app import run
from kafka_assets.cli.session import Session
from kafka_assets_tests.support.kafka import values

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka_assets_tests.cli.support import Project
    from kafka_assets_tests.conftest import TopicFactory
    from kafka_assets_tests.support.kafka import Place

STREAMS = {"orders": {"topics": ["orders"]}}


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "{file}", "--json", "verify"],
        ["--json", "verify", "--config={file}"],
        ["verify", "orders", "--json", "--config", "{file}"],
    ],
)
def test_global_options_stand_before_or_after_the_command(offline: Project, words: list[str]) -> None:
    """`--config` and `--json` mean the same wherever they are typed."""
    offline.write(STREAMS)
    out = io.StringIO()
    assert run([word.format(file=offline.file) for word in words], out) == 0
    assert json.loads(out.getvalue())["ok"]


def test_the_streams_file_is_found_by_variable_and_by_folder(
    offline: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """$KAFKA_ASSETS_CONFIG comes before ./streams.yaml, and --config before both."""
    offline.write(STREAMS)
    out = io.StringIO()
    assert run(["verify", "--json"], out) == 0
    monkeypatch.setenv("KAFKA_ASSETS_CONFIG", str(offline.folder / "other.yaml"))
    out = io.StringIO()
    assert run(["verify", "--json"], out) == 2
    assert "other.yaml" in out.getvalue()
    assert offline("verify")["ok"]


def test_help_is_the_answer(offline: Project) -> None:
    """Help goes to stdout and exits 0; with no command at all it is a usage error, as JSON too."""
    assert "ingest" in offline.text("--help")
    assert "--timeout" in offline.text("ingest", "-h")
    out = io.StringIO()
    assert run([], out) == 2
    assert "Commands:" in out.getvalue()
    out = io.StringIO()
    assert run(["--json"], out) == 2
    assert json.loads(out.getvalue())["error"]["code"] == "USAGE_INVALID"


def test_versions(offline: Project) -> None:
    """`version` names this, its dependencies and librdkafka."""
    found = offline("version")
    assert {"kafka-assets", "dagster", "confluent-kafka", "duckdb", "librdkafka"} <= set(found)
    assert found["librdkafka"] in offline.text("version")


def test_stdout_is_one_json_object_whatever_libraries_print(offline: Project) -> None:
    """What Python code or C code writes to stdout goes to stderr; stdout has the answer alone."""
    program = (
        "import os, sys, kafka_assets.cli.app as app\n"
        "def noisy(session):\n"
        "    print('from python'); sys.stdout.flush(); os.write(1, b'from C\\n')\n"
        "    session.answer({'answer': 42})\n"
        "app.commands.version = noisy\n"
        "sys.argv = ['kafka-assets', 'version', '--json']\n"
        "app.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=offline.folder, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"answer": 42}
    assert done.stdout.count("\n") == 1
    assert done.stderr == "from python\nfrom C\n"


def test_a_reader_that_has_gone_is_no_traceback(offline: Project) -> None:
    """When nobody reads stdout any more, the command ends as others do, with nothing on stderr."""
    offline.write(STREAMS)
    process = offline.start("verify")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(60) == 141


def test_quiet_where_nobody_looks_and_a_bar_on_a_terminal(
    project: Project, topic: TopicFactory, produce: Callable[..., list[Place]]
) -> None:
    """A short `ingest` says nothing on a stderr that is no terminal, a bar on one that is, and leaves no process."""
    name = topic()
    produce(name, values(3))
    project.write({"orders": {"topics": [name]}})
    process = project.start("ingest", "--json")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert json.loads(out)["streams"]["orders"]["records"] == 3
    produce(name, values(3))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*process.args, "--config", str(project.file)],  # type: ignore[misc]  a list of words
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    ) as shown:
        os.close(theirs)
        drawn = _read_to_the_end(ours)
        assert shown.stdout is not None
        assert json.load(shown.stdout)["streams"]["orders"]["records"] == 3
    assert "ingest orders" in drawn
    assert "━" in drawn


def _read_to_the_end(descriptor: int) -> str:
    parts = []
    try:
        while part := os.read(descriptor, 65536):
            parts.append(part)
    except OSError:
        # How Linux tells that the other side of a terminal is closed.
        pass
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="replace")


def test_progress_lines_come_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stderr is no terminal, a line says how far it is when it takes ten seconds, none before."""
    session = Session(None, as_json=True, out=io.StringIO())
    written = io.StringIO()
    monkeypatch.setattr(Session, "errors", Console(file=written))
    with progress.progress_for(session, "ingest orders") as shown:
        shown.total(2000)
        shown.advance(500)
        assert written.getvalue() == ""
        monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
        shown.advance(500)
        shown.say("waiting")
    assert written.getvalue() == "ingest orders: 1,000 of 2,000 offsets\nwaiting\n"
