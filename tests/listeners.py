"""Where the processes of a test listen."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest


def listening():
    """Addresses that this process and those below it listen on; skips where that cannot be seen."""
    if not Path("/proc/self/task").exists() or shutil.which("ss") is None:
        pytest.skip("needs /proc and ss")
    own = set(_below(os.getpid()))
    listed = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout
    return [
        line.split()[3] for line in listed.splitlines() if own & {int(pid) for pid in re.findall(r"pid=(\d+)", line)}
    ]


def beyond_loopback(addresses):
    """Those of the addresses that another machine can reach."""
    hosts = {address: address.rpartition(":")[0].strip("[]").removeprefix("::ffff:") for address in addresses}
    return sorted(address for address, host in hosts.items() if host not in {"127.0.0.1", "::1"})


def _below(pid):
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = path.read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        for child in children:
            found += _below(int(child))
    return found
