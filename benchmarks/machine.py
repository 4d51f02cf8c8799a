"""What the machine is, for a result to be read rightly."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> dict[str, str | int]:
    """Processor, cores, memory, system and Python."""
    cpu = _line(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()
    memory = _line(Path("/proc/meminfo"), "MemTotal")
    return {
        "processor": cpu,
        "cores": os.cpu_count() or 1,
        "memory_gib": round(int(memory.split()[0]) / 1024**2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _line(path: Path, name: str) -> str:
    lines = path.read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
