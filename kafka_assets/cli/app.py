"""What can be typed: arguments, exit codes, and the errors of the command line itself."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext, redirect_stdout
from typing import IO, NoReturn

import click

from kafka_assets.cli import commands, maintenance, operator
from kafka_assets.cli.quarantine import quarantine
from kafka_assets.cli.session import Session, answers_only_on_stdout
from kafka_assets.config import parse_duration
from kafka_assets.errors import KafkaAssetsError, UsageInvalidError

INTERRUPTED = 130
NOBODY_READS = 141
HELP = frozenset({"-h", "--help"})
NOT_YET = ("init",)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    code = NOBODY_READS
    try:
        with answers_only_on_stdout() as out:
            code = run(sys.argv[1:], out)
    except BrokenPipeError:
        # Whoever read the answer, `head` perhaps, has had enough of it.
        pass
    sys.exit(code)


def run(arguments: list[str], out: IO[str]) -> int:
    """Run one command, its answer written to `out`; return the exit code."""
    as_json = "--json" in arguments
    session = Session(None, as_json, out)
    error: KafkaAssetsError
    try:
        session.config_path, rest = _take_global(arguments)
        # Click prints help by itself, to a stdout that is not for answers.
        with nullcontext() if HELP.isdisjoint(rest) else redirect_stdout(out):
            cli.main(args=rest, prog_name="kafka-assets", standalone_mode=False, obj=session)
    except click.exceptions.NoArgsIsHelpError as shown:
        if not as_json:
            out.write(f"{shown.format_message()}\n")
            return UsageInvalidError.exit_code
        error = UsageInvalidError("no command was given (see `kafka-assets --help`)")
    except click.ClickException as refused:
        error = UsageInvalidError(f"{refused.format_message()} (see `kafka-assets --help`)")
    except KafkaAssetsError as known:
        error = known
    except (KeyboardInterrupt, click.Abort):
        session.say("interrupted: what was committed stays, the rest is as it was; run it again to go on")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as unknown:  # noqa: BLE001  whoever reads the answer gets one, whatever happens
        error = session.unexpected(unknown)
    else:
        return session.exit_code
    return _fail(session, error)


def _take_global(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Take `--config FILE` and `--json` out, wherever they stand: before the command or after it."""
    config: str | None = None
    rest: list[str] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if argument == "--":
            rest += [argument, *queue]
            break
        if argument == "--json":
            continue
        if argument == "--config":
            if not queue:
                raise UsageInvalidError("--config needs the path of a streams file after it")
            config = queue.pop(0)
        elif argument.startswith("--config="):
            config = argument.removeprefix("--config=")
        else:
            rest.append(argument)
    return config, rest


def _fail(session: Session, error: KafkaAssetsError) -> int:
    if session.as_json:
        session.out.write(json.dumps({"error": {"code": error.code, "message": error.message}}) + "\n")
        session.out.flush()
    else:
        session.show_error(error)
    return error.exit_code


def _seconds(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Read a duration as in the streams file."""
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


STREAMS = click.argument("streams", nargs=-1, metavar="[STREAM]...")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 a run failed or a proof did not hold, 2 usage or configuration, 3 stopped by policy"
    " and an operator decides, 4 not reachable or locked, 130 interrupted.",
)
def cli() -> None:
    """Kafka into tables with Dagster: nothing lost, nothing twice.

    Every command takes --config FILE (default: $KAFKA_ASSETS_CONFIG, else ./streams.yaml) and --json. STREAM left
    out means all of them.
    """


@cli.command()
@STREAMS
@click.pass_obj
def plan(session: Session, streams: tuple[str, ...]) -> None:
    """Show the batch that a tick would plan now, or why none. Changes nothing."""
    commands.plan(session, streams)


@cli.command()
@STREAMS
@click.option(
    "--timeout",
    callback=_seconds,
    metavar="DURATION",
    help="Stop after this long, like 90s or 10m, with exit code 4; what is committed stays.",
)
@click.pass_obj
def ingest(session: Session, streams: tuple[str, ...], timeout: float | None) -> None:
    """Plan and run batches up to the log ends seen now.

    Each is a Dagster run. With a rate limit it waits between batches. Cut short, it is started again and goes on.
    """
    commands.ingest(session, streams, timeout)


@cli.command()
@STREAMS
@click.pass_obj
def status(session: Session, streams: tuple[str, ...]) -> None:
    """Show offsets, lag and batches.

    Without the brokers it shows what the ledger knows, with exit code 4.
    """
    commands.status(session, streams)


@cli.command()
@STREAMS
@click.option(
    "--deep", is_flag=True, help="Also fetch everything still in Kafka again, and compare it byte for byte."
)
@click.pass_obj
def verify(session: Session, streams: tuple[str, ...], *, deep: bool) -> None:
    """Prove that every planned offset is accounted for.

    Compares count, offsets and a digest of each range in the table with what was fetched. Needs no Dagster, and no
    brokers unless --deep is given.
    """
    commands.verify(session, streams, deep=deep)


@cli.command()
@click.pass_obj
def version(session: Session) -> None:
    """Show the versions of this, its dependencies and librdkafka."""
    commands.version(session)


@cli.command()
@click.option("--rate", default=200, show_default=True, help="Sample orders produced each second.")
@click.pass_obj
def dev(session: Session, rate: int) -> None:
    """Run a local Kafka and `dagster dev`, sensors on.

    The Kafka is fed with sample orders, until interrupted.
    """
    from kafka_assets.dev.stack import dev as run_dev  # noqa: PLC0415  needs the dev extra

    session.exit_code = run_dev(session, rate=rate)


@cli.command()
@click.pass_obj
def demo(session: Session) -> None:
    """Ingest 100,000 sample orders, then show the proof.

    They go into a local Kafka and from there through Dagster runs into a table, whose head is shown.
    """
    from kafka_assets.dev.stack import demo as run_demo  # noqa: PLC0415  needs the dev extra

    session.exit_code = run_demo(session)


@cli.command()
@click.option("--port", type=int, help="Port to listen on; a free one by default.")
@click.option("--data", "data_dir", metavar="DIR", help="Where to keep the log; nowhere by default.")
@click.pass_obj
def broker(session: Session, port: int | None, data_dir: str | None) -> None:
    """Run just the local Kafka, until interrupted."""
    from kafka_assets.dev.stack import broker as run_broker  # noqa: PLC0415  needs the dev extra

    session.exit_code = run_broker(session, port=port, data_dir=data_dir)


def _refuse(name: str) -> click.Command:
    @click.command(
        name,
        hidden=True,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def refused() -> None:
        raise UsageInvalidError(
            f"kafka-assets {name} is not available in this version yet; nothing was changed."
        )

    return refused


cli.add_command(maintenance.replay)
cli.add_command(maintenance.expire)
cli.add_command(maintenance.rename)
cli.add_command(operator.reset)
cli.add_command(operator.backfill)
cli.add_command(quarantine)
for _name in NOT_YET:
    cli.add_command(_refuse(_name))
