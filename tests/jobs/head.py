"""A Ray head with its dashboard for tests: a child process on loopback, with a token, that ends with the test."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lipray.errors import ClusterError
from lipray.jobs.address import resolve
from lipray.jobs.greeting import greet

START_SECONDS = 90.0
MACHINES = """
import signal, sys
from ray.cluster_utils import Cluster

size = {"object_store_memory": 100 * 2**20, "node_ip_address": "127.0.0.1"}
port, *agents = map(int, sys.argv[1:])
head = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
cluster = Cluster(initialize_head=True, head_node_args=head | size | {"dashboard_agent_listen_port": agents[0]})
for agent in agents[1:]:
    cluster.add_node(num_cpus=1, dashboard_agent_listen_port=agent, **size)
signal.sigwait([signal.SIGTERM])
cluster.shutdown()
"""


class Head:
    """One node with two CPUs; ``run`` and ``start`` are the command ``lipray`` with its address and token.

    With ``nodes`` the head has no CPUs, and so many nodes of one CPU join it. Ray's own command refuses a second node
    on loopback; its class for tests does not.
    """

    def __init__(self, nodes=0):
        ports = free_ports(6)
        self.token = secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{ports[0]}"
        self.folder = Path(tempfile.mkdtemp(prefix="lipray-head-", dir="/tmp"))  # unix sockets need a short path
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = clean | {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.folder),
        }
        words = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--num-cpus=2"),
            *(f"--dashboard-port={ports[0]}", f"--port={ports[1]}", f"--dashboard-agent-listen-port={ports[2]}"),
            *(f"--dashboard-agent-grpc-port={ports[3]}", f"--runtime-env-agent-port={ports[4]}"),
            *(f"--metrics-export-port={ports[5]}", "--object-store-memory=104857600"),
            f"--temp-dir={self.folder / 'ray'}",
        ]
        if nodes:
            words = [sys.executable, "-c", MACHINES, *map(str, ports[: nodes + 2])]
        self.log = self.folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(words, env=self.environment, stdout=log, stderr=log, cwd=self.folder)

    def wait(self):
        """Until its dashboard answers."""
        end = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(ClusterError):
                greet(resolve(self.url), self.token)
                return self
            time.sleep(0.3)
        raise AssertionError(self.log.read_text())

    def close(self):
        """End this very process, and with it its children."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        else:
            print(f"the head had ended with {self.process.returncode}:\n{self.log.read_text()[-3000:]}")  # noqa: T201
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, *words, cwd, **environment):
        """``lipray`` as a process of its own."""
        return self._start([sys.executable, "-m", "lipray", *map(str, words)], cwd, environment)

    def _start(self, words, cwd, environment):
        own = {"RAY_API_SERVER_ADDRESS": self.url, "RAY_AUTH_TOKEN": self.token, "HOME": str(self.folder)}
        return subprocess.Popen(
            words,
            cwd=cwd,
            env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | own | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run_all(self, *commands, cwd):
        """Several commands one after the other in one process, which imports Ray once: (exit code, stdout, stderr)."""
        code = (
            "import json, sys\n"
            "from click.testing import CliRunner\n"
            "from lipray.cli.main import cli\n"
            "ended = [CliRunner().invoke(cli, words) for words in json.loads(sys.argv[1])]\n"
            "print(json.dumps([(end.exit_code, end.stdout, end.stderr) for end in ended]))\n"
        )
        words = json.dumps([[str(word) for word in words] for words in commands])
        process = self._start([sys.executable, "-c", code, words], cwd, {})
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        assert self.token not in out + err
        return json.loads(out)

    def run(self, *words, cwd, **environment):
        """``lipray`` until it has ended: exit code, stdout, stderr."""
        process = self.start(*words, cwd=cwd, **environment)
        out, err = process.communicate(timeout=200)
        assert self.token not in out + err
        return process.returncode, out, err


def free_ports(count):
    """Ports of loopback that nothing listens on."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]
