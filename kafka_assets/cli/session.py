"""One call of the command line: its options, what it has opened, and where its words go."""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console

from kafka_assets.config import load_config
from kafka_assets.errors import KafkaAssetsError, RunFailedError
from kafka_assets.interrupts import interruptible
from kafka_assets.log import KafkaLog
from kafka_assets.warehouse import Warehouse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kafka_assets.config import Config, StreamConfig

WORST_FIRST = (2, 1, 3, 4)
PIPE_WIDTH = 160


@dataclass
class Session:
    """The options of a call and its answer.

    Attributes:
        config_path: `--config`, if given.
        as_json: `--json`: one object on stdout and nothing else.
        out: Where the answer goes; everything else that is written to stdout goes to stderr.
    """

    config_path: str | None
    as_json: bool
    out: IO[str]
    exit_code: int = 0
    _logs: list[KafkaLog] = field(default_factory=list)

    @cached_property
    def config(self) -> Config:
        """The streams file, read from its own folder: relative paths in dagster.yaml count from there."""
        config = load_config(self.config_path)
        os.environ["KAFKA_ASSETS_CONFIG"] = str(config.path)
        os.chdir(config.path.parent)
        # As in `dagster dev`, which is started there: a module beside the file may give the oauth_token.
        if (folder := str(config.path.parent)) not in sys.path:
            sys.path.append(folder)
        return config

    @cached_property
    def warehouse(self) -> Warehouse:
        return Warehouse.of(self.config.warehouse)

    @cached_property
    def console(self) -> Console:
        width = None if self.out.isatty() else PIPE_WIDTH
        return Console(file=self.out, width=width)

    @cached_property
    def errors(self) -> Console:
        return Console(stderr=True, soft_wrap=True, highlight=False)

    def streams(self, names: Sequence[str]) -> list[StreamConfig]:
        if not names:
            return list(self.config.streams.values())
        return [self.config.stream(name) for name in dict.fromkeys(names)]

    @contextmanager
    def log(self, stream: StreamConfig) -> Iterator[KafkaLog]:
        with KafkaLog(stream.kafka.resolve()) as log:
            yield log

    def each(
        self,
        streams: Sequence[StreamConfig],
        work: Callable[[StreamConfig], dict[str, Any]],
        empty: dict[str, Any],
    ) -> dict[str, dict[str, Any]]:
        """Do the work for each stream, as far as each can, and return its answers with their errors.

        An error becomes part of its stream's answer, beside the keys of `empty`, and the worst the exit code.
        """
        answers: dict[str, dict[str, Any]] = {}
        for stream in streams:
            try:
                with interruptible():
                    answer = work(stream)
            except KafkaAssetsError as error:
                answer = {**empty, "error": error}
            except BrokenPipeError:
                raise
            except Exception as error:  # noqa: BLE001  the other streams go on
                answer = {**empty, "error": self.unexpected(error)}
            failed = answer.get("error")
            if isinstance(failed, KafkaAssetsError):
                self.worsen(failed.exit_code)
                answer["error"] = {"code": failed.code, "message": failed.message}
                if not self.as_json:
                    self.show_error(failed, stream.name)
            else:
                answer["error"] = None
            answers[stream.name] = answer
        return answers

    def worsen(self, exit_code: int) -> None:
        """Keep the worst exit code of several."""
        for code in WORST_FIRST:
            if code in (exit_code, self.exit_code):
                self.exit_code = code
                return

    def answer(self, value: dict[str, Any]) -> None:
        """Write the one JSON object of `--json`."""
        json.dump(value, self.out, default=str)
        self.out.write("\n")
        self.out.flush()

    def say(self, text: str) -> None:
        """Write a line about the work going on, not part of the answer, to stderr."""
        self.errors.print(text, markup=False)

    def unexpected(self, error: Exception) -> RunFailedError:
        """Return an error for one that has no code, after its traceback went to stderr."""
        traceback.print_exception(error)
        return RunFailedError(
            f"{type(error).__name__}: {error}. What is committed stays, the rest is as it was. The traceback on"
            " stderr says where it happened; if nothing around explains it, it is a defect of kafka_assets."
        )

    def show_error(self, error: KafkaAssetsError, stream: str | None = None) -> None:
        where = f"stream {stream}: " if stream else ""
        self.errors.print(f"{where}{error.code}: {error.message}", style="red", markup=False)


@contextmanager
def answers_only_on_stdout() -> Iterator[IO[str]]:
    """Keep stdout for the answer: what libraries print there, from Python or from C, goes to stderr instead."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(kept, "w", encoding="utf-8", closefd=False) as out:
            yield out
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
