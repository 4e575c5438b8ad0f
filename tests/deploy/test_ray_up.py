"""cluster/onpremise.yaml as README.md says, over SSH: a head, a worker and a client, made of namespaces.

Only the addresses, the account and the installation, which would need a network, are not as in the repository.
"""

import shlex
import shutil
import subprocess
import sys

import pytest

from tests.deploy.files import CLUSTER, ROOT, WHEEL
from tests.deploy.test_machines import ESTIMATE, NETWORK, finished, folder, on_machines, token

__all__ = ["folder"]

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

SSHD = "/usr/sbin/sshd"
ACCOUNTS = """
# A machine of its own as far as its account's home and Ray's files are concerned; then a command on it.
machine() {
    mkdir -p "$FOLDER/home$1"
    printf '%s\\n' "root:x:0:0:root:$FOLDER/home$1:/bin/bash" sshd:x:999:65534::/run/sshd:/bin/false >"$FOLDER/passwd$1"
    on "$1" unshare --mount bash -c '
        mount --bind "$FOLDER/passwd$0" /etc/passwd
        mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray
        export HOME=$FOLDER/home$0
        exec "$@"' "$@"
}
server() {
    machine "$1" env --ignore-environment PATH=/usr/sbin:/usr/bin:/sbin:/bin SSHD -D -e -f /dev/null \\
        -o ListenAddress="$NETWORK.$1" -o HostKey="$FOLDER/home12/.ssh/lipray" -o StrictModes=no -o PidFile=none \\
        -o AuthorizedKeysFile="$FOLDER/home12/.ssh/lipray.pub" -o PermitRootLogin=yes 2>"$FOLDER/sshd$1.log" &
}
""".replace("SSHD", SSHD)


def checkout(folder):
    """What ``ray up`` reads from the repository's root, with addresses here and an installation without a network."""
    root = folder / "checkout"
    for path in ("cluster", "docker", "dist"):
        (root / path).mkdir(parents=True)
    shutil.copytree(ROOT / "examples", root / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for path in ("constraints.txt", "cluster/node.sh"):
        shutil.copy(ROOT / path, root / path)
    (root / "dist" / WHEEL).touch()
    (root / "docker" / "install.sh").write_text(f'ln -sfn {shlex.quote(sys.prefix)} "$1"\n')
    config = (CLUSTER / "onpremise.yaml").read_text()
    for before, after in (
        ("head_ip: 192.0.2.10", f"head_ip: {NETWORK}.10"),
        ("worker_ips: [192.0.2.11, 192.0.2.12]", f"worker_ips: [{NETWORK}.11]"),
        ("max_workers: 2", "max_workers: 1"),
        ("ssh_user: lipray", "ssh_user: root"),
    ):
        assert before in config
        config = config.replace(before, after)
    (root / "cluster" / "onpremise.yaml").write_text(config)
    return root


@pytest.mark.skipif(not shutil.which(SSHD) or not shutil.which("rsync"), reason="sshd and rsync are not installed here")
def test_machines_on_premise(folder):
    token(folder / "home12")
    key = folder / "home12" / ".ssh" / "lipray"
    key.parent.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    launcher = "cluster/onpremise.yaml"
    said = on_machines(
        folder,
        f"""
        {ACCOUNTS}
        mkdir /run/sshd
        server 10
        server 11
        cat >$FOLDER/client.sh <<'CLIENT'
set -euo pipefail
cd {checkout(folder)}
ray up --yes --no-config-cache {launcher}
ray dashboard {launcher} &
for _ in $(seq 60); do lipray doctor --address http://127.0.0.1:8265 >/dev/null && break; sleep 2; done
for _ in $(seq 60); do
    ray exec {launcher} 'RAY_AUTH_MODE=token ~/lipray/env/bin/ray status' >$FOLDER/status || true
    grep -q '/[1-9][0-9.]* CPU' $FOLDER/status && break
    sleep 3
done
PYTHONPATH={ROOT} python -m lipray submit --address http://127.0.0.1:8265 --store $FOLDER/store --wait \\
    {ESTIMATE.removeprefix("estimate ")}
ray rsync-down {launcher} "$(echo $FOLDER/store/lipray-*)/" $FOLDER/fetched/
ray exec {launcher} 'bash ~/lipray/node.sh stop'
CLIENT
        machine 12 bash $FOLDER/client.sh
        stat -c '%a' $FOLDER/home10/.ray/auth_token $FOLDER/home11/.ray/auth_token
        """,
        RAY_AUTH_MODE="token",
    )
    (manifest,) = folder.glob("store/*/manifest.json")
    finished(manifest.parent)
    finished(folder / "fetched")
    assert said.splitlines()[-2:] == ["600", "600"]
