"""What the benchmarks ran on, for the headings of their tables."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor as Linux names it; elsewhere what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
