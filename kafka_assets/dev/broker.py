"""Apache Kafka as child processes: for the demo, for development, for tests."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, TYPE_CHECKING, Self

from confluent_kafka import KafkaException

from kafka_assets.dev import supervisor
from kafka_assets.dev.jars import KAFKA_VERSION, OWN_KAFKA, LocalKafkaError, java, kafka_jars
from kafka_assets.dev.topics import admin, create_topic, delete_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["LocalKafka", "LocalKafkaError", "create_topic", "delete_topic"]

_HOST = "127.0.0.1"
_NODE_COUNTS = (1, 3)
# Below the ephemeral range: a client that retries a port of that range on loopback may connect to itself,
# and the broker that comes back finds its port taken.
_PORTS = range(20000, 32000)
_START_SECONDS = 60.0
_FOLDER_SECONDS = 30.0
_FREEZE_LOOK_SECONDS = 0.001
_TAIL_LINES = 40
# Serial collector and first compiler alone: a second of CPU less to start and a third less over a million
# records, at the same records per second in and out.
_JVM_FLAGS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
_LOG_FLAGS = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")


class LocalKafka:
    """One Apache Kafka cluster on 127.0.0.1 that lives no longer than this process.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`. Node ids run from 1.

    Args:
        data_dir: Keeps the log, the cluster id and the ports from one start to the next; None for a folder
            that is removed on stop.
        nodes: 1, or 3, each of them broker and controller.
        port: The first node's port; None for a free one. The others are always chosen free.
        properties: More of server.properties, set over ours.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        nodes: int = 1,
        port: int | None = None,
        properties: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if nodes not in _NODE_COUNTS:
            raise ValueError(f"nodes={nodes}: a local Kafka has 1 node or 3")
        self._kept = data_dir
        self._nodes = range(1, nodes + 1)
        self._port = port
        self._properties = dict(properties)
        self._folder = Path()
        self._command: list[str] = []
        self._lock: IO[str] | None = None
        self._ports: list[int] = []
        self._supervisors: dict[int, subprocess.Popen[str]] = {}
        self._pids: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"LocalKafka({self.bootstrap_servers if self._ports else 'stopped'})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def bootstrap_servers(self) -> str:
        """``host:port`` of every node, also of those that are down."""
        return ",".join(self._address(node) for node in self._nodes)

    @property
    def pids(self) -> Mapping[int, int]:
        """Node id -> process id of its JVM, of the nodes that were started and not stopped or killed."""
        return MappingProxyType(self._pids)

    @property
    def pid(self) -> int:
        """The process id of the first node's JVM."""
        return self._pids[1]

    def output(self, node: int = 1) -> Path:
        """The file with all that a node wrote."""
        return self._folder / f"node-{node}.log"

    def start(self) -> None:
        """Start every node and wait until all of them answer.

        Raises:
            LocalKafkaError: No jars, no Java, the folder is in use, or Kafka did not answer; with the last
                lines that it wrote.
        """
        jars, executable = kafka_jars(), java()
        self._folder = self._kept or Path(tempfile.mkdtemp(prefix="local-kafka-"))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder = self._folder.resolve()
            self._take_folder()
            cluster_id = self._settle_ports()
            self._command = [str(executable), *_JVM_FLAGS, *_LOG_FLAGS, "-cp", f"{jars}/*"]
            for node in self._nodes:
                self.output(node).unlink(missing_ok=True)
            self._format(cluster_id)
            for node in self._nodes:
                self._launch(node)
            self._await_nodes(self.bootstrap_servers, set(self._nodes))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop every node, and remove the folder unless it was given. Does nothing when stopped."""
        for process in self._supervisors.values():
            if process.stdin:
                process.stdin.close()
        for process in self._supervisors.values():
            process.wait()
            if process.stdout:
                process.stdout.close()
        self._supervisors.clear()
        self._pids.clear()
        if self._lock:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()
            self._lock = None
        if self._kept is None and self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)
            self._ports = []

    def kill_node(self, node: int) -> None:
        """End a node with SIGKILL, and wait until it has ended."""
        os.kill(self._pids[node], signal.SIGKILL)
        self._reap(node)

    def stop_node(self, node: int) -> None:
        """Shut a node down in good order, and wait until it has ended."""
        stdin = self._supervisors[node].stdin
        if stdin:
            stdin.close()
        self._reap(node)

    def start_node(self, node: int, *, wait: bool = True) -> None:
        """Start a node that was killed or stopped; waits until it is in service unless told not to.

        Raises:
            LocalKafkaError: It did not answer in time.
        """
        self._launch(node)
        if wait:
            self._await_nodes(self._address(node), {node})

    def pause_node(self, node: int) -> None:
        """Freeze a node: it keeps its connections and accepts new ones, and answers nothing.

        On Linux this returns once it has stopped: on a busy machine a thread may run on for a moment, and answer.
        """
        pid = self._pids[node]
        os.kill(pid, signal.SIGSTOP)
        while not all(map(_is_stopped, Path(f"/proc/{pid}/task").glob("*/stat"))):
            time.sleep(_FREEZE_LOOK_SECONDS)

    def resume_node(self, node: int) -> None:
        """Let a frozen node go on."""
        os.kill(self._pids[node], signal.SIGCONT)

    def _address(self, node: int) -> str:
        return f"{_HOST}:{self._ports[2 * (node - 1)]}"

    def _take_folder(self) -> None:
        """Hold the folder, together with the supervisors, who outlive us until their node has ended."""
        self._lock = (self._folder / "lock").open("w")
        deadline = time.monotonic() + _FOLDER_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LocalKafkaError(
                        f"Another local Kafka runs on {self._folder}, still after {_FOLDER_SECONDS:g} s. "
                        "A folder serves one Kafka: stop that one, or name another folder."
                    ) from None
                time.sleep(0.05)
            else:
                return

    def _settle_ports(self) -> str:
        """Choose the ports, the last ones where still free, and return the cluster's id."""
        state = self._folder / "cluster.json"
        known = json.loads(state.read_text()) if state.exists() else {}
        if known and known["nodes"] != len(self._nodes):
            raise LocalKafkaError(
                f"{self._folder} holds a Kafka of {known['nodes']} nodes, not {len(self._nodes)}. "
                f"Start it with nodes={known['nodes']}, or remove the folder."
            )
        before = known.get("ports", [])
        if self._port is not None:
            if not _is_free(self._port):
                raise LocalKafkaError(
                    f"Port {self._port} of {_HOST} is taken, so Kafka cannot listen there. "
                    "Stop what listens, or name another port."
                )
            before = [self._port, *before[1:]]
        self._ports = []
        for index in range(2 * len(self._nodes)):
            wanted = before[index] if index < len(before) else 0
            taken = wanted in self._ports or not wanted or not _is_free(wanted)
            self._ports.append(_free_port(self._ports) if taken else wanted)
        cluster_id: str = known.get("cluster_id") or _new_cluster_id()
        known = {"cluster_id": cluster_id, "nodes": len(self._nodes), "ports": self._ports}
        state.write_text(json.dumps(known))
        return cluster_id

    def _settings(self, node: int) -> dict[str, str]:
        broker, controller = self._ports[2 * (node - 1) : 2 * node]
        copies = str(len(self._nodes))
        in_sync = "1" if len(self._nodes) == 1 else "2"
        return {
            "process.roles": "broker,controller",
            "node.id": str(node),
            "controller.quorum.voters": ",".join(
                f"{each}@{_HOST}:{self._ports[2 * each - 1]}" for each in self._nodes
            ),
            "listeners": f"PLAINTEXT://{_HOST}:{broker},CONTROLLER://{_HOST}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{_HOST}:{broker}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self._folder / f"node-{node}"),
            "auto.create.topics.enable": "false",
            "num.partitions": "1",
            "default.replication.factor": copies,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            "share.coordinator.state.topic.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            # Retention, compaction and the end of a forgotten transaction come within a second, not minutes.
            "log.initial.task.delay.ms": "500",
            # Only where a topic asks for it: the default week would take records with old times at once.
            "log.retention.ms": "-1",
            "log.retention.check.interval.ms": "500",
            "log.segment.delete.delay.ms": "500",
            "log.cleaner.backoff.ms": "500",
            "log.cleaner.dedupe.buffer.size": "8388608",
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
            # A record's own time may be any.
            "log.message.timestamp.after.max.ms": str(2**63 - 1),
            # A killed node is out after four seconds, not nine.
            "broker.heartbeat.interval.ms": "500",
            "broker.session.timeout.ms": "4000",
            **self._properties,
        }

    def _settings_file(self, node: int) -> Path:
        path = self._folder / f"node-{node}.properties"
        path.write_text("".join(f"{key}={value}\n" for key, value in self._settings(node).items()))
        return path

    def _format(self, cluster_id: str) -> None:
        """Lay out each node's log folder, once in its life."""
        tools = {}
        for node in self._nodes:
            settings = str(self._settings_file(node))
            if (self._folder / f"node-{node}" / "meta.properties").exists():
                continue
            arguments = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", settings]
            with self.output(node).open("ab") as file:
                tools[node] = subprocess.Popen(  # noqa: S603 - our own command
                    [*self._command, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
        for node, tool in tools.items():
            if tool.wait():
                raise LocalKafkaError(f"Kafka's log folder could not be laid out. {self._tail([node])}")

    def _launch(self, node: int) -> None:
        command = [*self._command, "kafka.Kafka", str(self._settings_file(node))]
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-I", "-S", supervisor.__file__, str(self.output(node)), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._folder,
            # Away from the terminal's Ctrl-C: this process decides when Kafka stops.
            start_new_session=True,
            pass_fds=[self._lock.fileno()] if self._lock else [],
        )
        self._supervisors[node] = process
        answer = process.stdout.readline() if process.stdout else ""
        if not answer:
            raise LocalKafkaError(f"{command[0]} could not be started. {self._tail([node])}")
        self._pids[node] = int(answer)

    def _reap(self, node: int) -> None:
        process = self._supervisors.pop(node)
        del self._pids[node]
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()

    def _await_nodes(self, bootstrap: str, wanted: set[int]) -> None:
        client = admin(bootstrap)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            ended = [node for node in wanted if self._supervisors[node].poll() is not None]
            if ended:
                raise LocalKafkaError(f"Kafka ended while it started. {self._tail(ended)}")
            try:
                answer = client.list_topics(timeout=1.0)
            except KafkaException as error:
                last = str(error)
            else:
                if wanted <= set(answer.brokers):
                    return
                last = f"only nodes {sorted(answer.brokers)} of {sorted(wanted)} are in service"
            if time.monotonic() > deadline:
                raise LocalKafkaError(
                    f"Kafka did not answer on {bootstrap} within {_START_SECONDS:g} s: {last}. "
                    f"{self._tail(sorted(wanted))}"
                )
            time.sleep(0.05)

    def _tail(self, nodes: Sequence[int]) -> str:
        parts = []
        for node in nodes:
            output = self.output(node)
            lines = output.read_text(errors="replace").splitlines() if output.exists() else []
            told = "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:]) or "  (nothing)"
            parts.append(f"The last that node {node} of Apache Kafka {KAFKA_VERSION} wrote:\n{told}")
        return "\n".join([*parts, OWN_KAFKA])


def _new_cluster_id() -> str:
    # Kafka's own are made of these too; one that begins with a dash would be taken for an option.
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")


def _is_stopped(stat: Path) -> bool:
    """Whether a thread is stopped, or gone, by its `stat` file (proc_pid_stat(5): the state follows the name)."""
    try:
        return stat.read_text().rpartition(") ")[2][:1] == "T"
    except OSError:
        return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _free_port(taken: Sequence[int]) -> int:
    choose: Callable[[Sequence[int]], int] = random.SystemRandom().choice
    while True:
        port = choose(_PORTS)
        if port not in taken and _is_free(port):
            return port
