#!/usr/bin/env bash
# Machines for tests: network namespaces on one bridge, with addresses of a network that exists in here only. To be run by
#     unshare --net --pid --mount --fork --mount-proc --kill-child bash machines.sh FOLDER NETWORK COMMAND...
# where NETWORK is like 172.31.253. The command runs on machine 10; `on N COMMAND...` runs one on machine N (10, 11, 12).
set -euo pipefail
export FOLDER=$1 NETWORK=$2
shift 2

mount -t tmpfs none /run
mkdir -p "$FOLDER/bin"
ip link set lo up
ip link add bridge type bridge
ip link set bridge up
for machine in 10 11 12; do
    ip netns add "m$machine"
    ip link add "v$machine" type veth peer name eth0 netns "m$machine"
    ip link set "v$machine" master bridge up
    ip -n "m$machine" address add "$NETWORK.$machine/24" dev eth0
    ip -n "m$machine" link set eth0 up
    ip -n "m$machine" link set lo up
    # Leads nowhere; Ray takes the address it would reach other networks from.
    ip -n "m$machine" route add default via "$NETWORK.1"
done
cat >"$FOLDER/bin/on" <<'ON'
#!/usr/bin/env bash
set -euo pipefail
machine=$1
shift
export RAY_TMPDIR=$FOLDER/m$machine
mkdir -p "$RAY_TMPDIR"
exec ip netns exec "m$machine" "$@"
ON
chmod +x "$FOLDER/bin/on"
export PATH=$FOLDER/bin:$PATH
on 10 "$@"
