"""One row in a process of its own: its time, its peak memory, and an end when it takes too much of either.

The processes are forked from one that has imported the libraries and done nothing else, so that a row costs its work
and not two seconds of imports; it has one BLAS thread. The peak is the largest resident set of the process itself, the
libraries (``before``) included.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

from apart import peak_memory
from harness import Row

from lipray.run import THREAD_VARIABLES
from peers.answer import Answer, NotHereError

PRELOAD = ("numpy", "scipy.linalg", "scipy.sparse", "torch", "cvxpy", "lipray.run.driver", "lipray.certify.ellipsoid")
LOOK = 0.25
"""Seconds between two looks at a process's memory."""
GRACE = 1.25
"""A row may take this much of its limit, because solvers end their last step first; plus ``SETTLE`` seconds."""
SETTLE = 10.0


def context(threads: int = 1, preload: tuple[str, ...] = PRELOAD) -> multiprocessing.context.ForkServerContext:
    """Where processes come from, with its imports done. To be called before anything else: it sets the threads."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(list(preload))
    first = made.Process(target=time.sleep, args=(0.0,))  # the first row's limit is not for the imports
    first.start()
    first.join()
    return made


def measure(
    made: multiprocessing.context.ForkServerContext,
    work: Callable[..., Callable[[], Answer]],
    limit: float,
    memory: int,
    *given: object,
) -> Row:
    """Do what ``work(*given)`` prepares in a process of its own; what came of it, as a row.

    Args:
        made: what ``context`` returned.
        work: a function of a module, with arguments that can be pickled; what it returns is called, and timed.
        limit: seconds it is asked to keep; it is ended at ``GRACE`` times that and ``SETTLE`` seconds.
        memory: bytes of resident memory at which it is ended.
        given: its arguments.
    """
    receive, send = made.Pipe(duplex=False)
    process = made.Process(target=_work, args=(send, work, given), daemon=True)
    start = time.monotonic()
    process.start()
    send.close()
    peak, cpu, why = 0, 0.0, ""
    try:
        while not receive.poll(LOOK):
            peak, cpu = max(peak, _resident(process.pid)), max(cpu, _used(process.pid))
            if peak > memory:
                why = f"out of memory ({memory / 2**30:.0f} GiB)"
            elif time.monotonic() - start > GRACE * limit + SETTLE:
                why = f"out of time ({limit:.0f} s)"
            if why:
                seconds = round(time.monotonic() - start, 3)
                return {"bound": None, "ended": why, "seconds": seconds, "cpu": cpu, "peak": peak, "limit": limit}
        try:
            row: Row = receive.recv()
        except EOFError:
            process.join()
            seconds = round(time.monotonic() - start, 3)
            ended = f"died (exit code {process.exitcode})"
            return {"bound": None, "ended": ended, "seconds": seconds, "peak": peak, "limit": limit}
        return {**row, "limit": limit}
    finally:
        if process.is_alive():
            process.join(2.0 if not why else 0.0)
        if process.is_alive():
            process.kill()
        process.join()
        receive.close()


def _work(send: Connection, work: Callable[..., Callable[[], Answer]], given: tuple[object, ...]) -> None:
    import torch

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no row outlives the run
    torch.set_num_threads(int(os.environ[next(iter(THREAD_VARIABLES))]))
    _quiet()
    before, start, used = peak_memory(), time.perf_counter(), time.process_time()
    try:
        prepared = work(*given)
        before, start, used = peak_memory(), time.perf_counter(), time.process_time()
        answer = asdict(prepared())
    except NotHereError as fault:
        answer = {"bound": None, "ended": str(fault), "left_out": True}
    except Exception as fault:  # noqa: BLE001 - a peer's fault is a row, not the end of the run
        answer = {"bound": None, "ended": f"{type(fault).__name__}: " + " ".join(str(fault).split())[:120]}
    seconds, cpu = round(time.perf_counter() - start, 6), round(time.process_time() - used, 6)
    send.send({**answer, "seconds": seconds, "cpu": cpu, "peak": peak_memory(), "before": before})
    send.close()


def _quiet() -> None:
    """Solvers write to the process's own output; what is worth reading is in their answers."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _resident(pid: int | None) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _used(pid: int | None) -> float:
    """CPU seconds of a process so far, its imports left out because they were another's."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
