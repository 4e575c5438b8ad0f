"""A measurement in a process of its own, so that its time and its peak memory are its own.

``apart(function, argument=...)`` runs a function of one of the scripts here in a fresh interpreter and returns what it
returns, a dictionary of plain values, with ``wall`` and ``cpu`` (s, the whole process, its start and imports included)
and ``peak`` (bytes) added. The peak is the process's largest resident set by the kernel's count (VmHWM): ``ru_maxrss``
but for what that inherits from the process it was started by.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness import ROOT, Row

from lipray.run import THREAD_VARIABLES


class FailedError(RuntimeError):
    """The process ended without a result."""


def apart(function: Callable[..., Row], *, threads: int | None = None, **arguments: object) -> Row:
    """Run a function of a script of this folder in a process of its own.

    Args:
        function: what to run; its arguments and its result must be plain values.
        threads: of the numerical libraries; ``None`` leaves them.
        arguments: its arguments.

    Raises:
        FailedError: the process was killed, or raised.
    """
    module = Path(function.__code__.co_filename).stem
    words = [sys.executable, __file__, module, function.__name__, json.dumps(arguments)]
    limited = {} if threads is None else dict.fromkeys(THREAD_VARIABLES, str(threads))
    start = time.perf_counter()
    done = subprocess.run(
        words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **limited}
    )
    wall = time.perf_counter() - start
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        why = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise FailedError(f"{module}.{function.__name__}: {why}")
    return {**json.loads(lines[-1]), "wall": round(wall, 3)}


def peak_memory() -> int:
    """Bytes of this process's largest resident set so far."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> int:
    """Run the function named on the command line and print its result as one line of JSON."""
    module, name, arguments = sys.argv[1:]
    function = getattr(importlib.import_module(module), name)
    result = function(**json.loads(arguments))
    print(json.dumps({**result, "peak": peak_memory(), "cpu": round(time.process_time(), 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
