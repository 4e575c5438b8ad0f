"""This machine: Python and packages against what lipray asks for, cores, memory, and threads."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lipray.config import EstimateConfig
from lipray.run import THREAD_VARIABLES
from lipray.run.checks.findings import Finding, fault, good, warning
from lipray.run.serial import machine_memory

ENVIRONMENT = 1
"""Exit code where what is installed does not do."""
SAFE_PART = 0.75
"""Part of the memory that one sub-problem may be given."""
PROBE_SECONDS = 120.0

_OPTIONAL = ("onnx", "s3", "report", "parquet")
"""Extras that add abilities; the others are for lipray's own tests and benchmarks."""

_PROBE = """
import json, os
import numpy
square = numpy.ones((512, 512))
square @ square
try:
    threads = len(os.listdir("/proc/self/task"))
except OSError:
    threads = None
import torch
print(json.dumps({"numpy": threads, "torch": torch.get_num_threads()}))
"""


def versions(distribution: str = "lipray") -> Iterator[Finding]:
    """Python and every package that the distribution's metadata asks for, none of them imported."""
    try:
        wanted = [Requirement(text) for text in metadata.requires(distribution) or ()]
        python = SpecifierSet(metadata.metadata(distribution)["Requires-Python"] or "")
    except metadata.PackageNotFoundError:
        text = f"{distribution} is not installed here, so nothing says which versions it needs"
        yield warning("packages", text, "Install it: python -m pip install .")
        return
    if python.contains(platform.python_version(), prereleases=True):
        yield good("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    else:
        text = f"{platform.python_version()}, and {python} is needed"
        yield fault("Python", text, "Install lipray with a newer Python.", code=ENVIRONMENT)
    present = []
    for requirement in (item for item in wanted if item.marker is None or item.marker.evaluate({"extra": ""})):
        found = _installed(requirement.name)
        if found is not None and requirement.specifier.contains(found, prereleases=True):
            present.append(f"{requirement.name} {found}")
            continue
        text = f"{found or 'not installed'}, and {requirement.specifier or 'any version'} is needed"
        remedy = f'python -m pip install "{requirement.name}{requirement.specifier}"'
        yield fault(requirement.name, text, remedy, code=ENVIRONMENT)
    yield good("packages", ", ".join(present))
    optional = ", ".join(text for extra in _OPTIONAL for text in _of_extra(wanted, extra))
    if optional:
        yield good("optional packages", optional)


def _of_extra(wanted: list[Requirement], extra: str) -> Iterator[str]:
    for requirement in wanted:
        marker = requirement.marker
        if marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            found = _installed(requirement.name)
            yield f"{requirement.name} {found or 'not installed'} (lipray[{extra}])"


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> Iterator[Finding]:
    """Cores this process may use, and what its control group allows."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = _quota(quota)
    if allowed is None or allowed >= count:
        yield good("cores", str(count))
        return
    whole = max(1, math.floor(allowed))
    text = f"{count}, and the control group allows the time of {allowed:g}"
    yield warning("cores", text, f"An embedded Ray counts {count}: give --workers {whole}.")


def _quota(path: Path) -> float | None:
    try:
        limit, period = path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return int(limit) / int(period) if limit.isdigit() and period.isdigit() and int(period) else None


def memory() -> Iterator[Finding]:
    """Memory this process may use, against what one sub-problem may be given."""
    available = machine_memory()
    limit = EstimateConfig().memory
    text = f"{available / 2**30:.1f} GiB"
    if available >= limit:
        yield good("memory", text)
        return
    part = int(available * SAFE_PART / 2**20)
    text += f", less than the {limit / 2**30:g} GiB that one sub-problem may take by default"
    yield warning("memory", text, f"Give --memory {part}MiB, so that the planner cuts until it fits.")


def threads() -> Iterator[Finding]:
    """Threads of numpy and torch in a new process, with the variables set to one as in a worker."""
    one = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
    name = "threads"
    try:
        done = subprocess.run(  # noqa: S603 - no shell, fixed words
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, env=one, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        text = f"numpy and torch were not imported within {PROBE_SECONDS:.0f} s"
        yield fault(name, text, "The disk of the environment may be slow; try again.", code=ENVIRONMENT)
        return
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        text = f"numpy and torch cannot be imported ({lines[-1][:200]})"
        yield fault(name, text, "Install lipray into a new environment.", code=ENVIRONMENT)
        return
    found = json.loads(done.stdout)
    shown = ", ".join(f"{library} {count if count is not None else '?'}" for library, count in found.items())
    if all(count in {1, None} for count in found.values()):
        yield good(name, f"{shown} where the variables say one")
    else:
        text = f"{shown} although {', '.join(THREAD_VARIABLES)} say one"
        yield warning(
            name, text, "Workers would get in each other's way: use builds of numpy and torch that heed them."
        )
