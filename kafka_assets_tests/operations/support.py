"""The operator's verbs as they are typed."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

from kafka_assets.cli.app import run
from kafka_assets_tests.faults.story import STREAM

if TYPE_CHECKING:
    from kafka_assets_tests.faults.story import Answer, Story


def reset(story: Story, *arguments: str, exit_code: int = 0) -> Answer:
    answer = story.command("reset", *arguments)
    assert answer.exit_code == exit_code, answer
    return answer


def backfill(story: Story, *arguments: str, exit_code: int = 0) -> Answer:
    answer = story.command("backfill", *arguments)
    assert answer.exit_code == exit_code, answer
    return answer


def refusal(story: Story, verb: str, *arguments: str) -> tuple[str, int]:
    """Error code and exit code of a command that is refused, by its stream or before it was reached."""
    out = io.StringIO()
    code = run([verb, STREAM, *arguments, "--json", "--config", str(story.file)], out)
    answer = json.loads(out.getvalue())
    return (answer.get("error") or answer["streams"][STREAM]["error"])["code"], code


def typed(story: Story, verb: str, *arguments: str) -> tuple[int, str]:
    """Exit code and stdout of a command without `--json`."""
    out = io.StringIO()
    return run([verb, STREAM, *arguments, "--config", str(story.file)], out), out.getvalue()
