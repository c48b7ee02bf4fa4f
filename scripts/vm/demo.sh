#!/usr/bin/env bash
# Three hosts and a client as network namespaces, a guest, a kill, and a conversation that lives through it.
# Called by `make vm-demo`; leaves nothing behind.
#   scripts/vm/demo.sh FOLDER_OF_BINARIES [KILLS]
set -euo pipefail
bin=$(realpath "${1:?folder of the binaries}") kills=${2:-2}
here=$(cd "$(dirname "$0")" && pwd)
kernel=${XDG_CACHE_HOME:-$HOME/.cache}/mycelium/guest-kernel/vmlinuz
work=$(mktemp -d) lab=mydemo$$
declare -A address=([a]=10.77.0.1 [b]=10.77.0.2 [c]=10.77.0.3)

[[ $(id -u) == 0 ]] || { echo "vm-demo: needs root, to make network namespaces" >&2; exit 1; }

tidy() {
  local name pids
  for name in client a b c switch; do
    pids=$(ip netns pids "$lab-$name" 2>/dev/null || true)
    [[ -z $pids ]] || kill -9 $pids 2>/dev/null || true
    ip netns delete "$lab-$name" 2>/dev/null || true
  done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap 'tidy' EXIT
trap 'exit 130' INT TERM

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }

typed() {
  local host=$1 word line=
  shift
  for word; do [[ $word == *' '* ]] && line+=" \"$word\"" || line+=" $word"; done
  printf '%s$%s' "$host" "$line"
}
# A command on a host: shown as one would type it there.
on() {
  local host=$1
  shift
  typed "$host" "$@" && echo
  quietly "$host" "$@"
}
quietly() {
  local host=$1
  shift
  MYCELIUM_DATA_DIR=$work/$host MYCELIUM_NODE_NAME=$host NO_COLOR=1 PATH=$bin:$PATH ip netns exec "$lab-$host" "$@"
}
# The same, as a process that stays.
start() {
  typed "$@" && echo ' &'
  quietly "$@" >> "$work/$1.log" 2>&1 &
  disown
}
patiently() {
  local what=$1 try
  shift
  for try in {1..600}; do
    "$@" && return
    sleep 0.1
  done
  echo "vm-demo: waited in vain: $what" >&2
  tail -n 20 "$work"/*.log >&2
  exit 1
}

plug() {
  ip netns add "$lab-$1"
  ip -n "$lab-$1" link set lo up
  ip -n "$lab-switch" link add "to-$1" type veth peer name uplink netns "$lab-$1"
  ip -n "$lab-switch" link set "to-$1" master lan up
  ip -n "$lab-$1" link set uplink up
}
# How many backups are in sync, as the host that has the guest says; which host that is goes to `primary`.
primary=a
in_sync() {
  local host state
  for host in a b c; do
    state=$(quietly "$host" mycelium vm status demo -o json 2>/dev/null) || continue
    grep -q '"role": "primary"' <<< "$state" || continue
    [[ $host != "${lost:-}" ]] || continue
    primary=$host
    (($(grep -c '"state": "backup"' <<< "$state") >= $1)) && return
  done
  return 1
}
counted() { tail -n 1 "$work/client.log" 2>/dev/null | sed -n 's/.*heard \([0-9]*\).*/\1/p'; }
goes_on() { local now; now=$(counted); ((${now:-0} > $1)); }
# Lines that came back over the client's one TCP connection.
lines() { tail -n 1 "$work/client.log" 2>/dev/null | sed -n 's/.*; \([0-9]*\) lines.*/\1/p'; }
connection_lives() { local now; now=$(lines); ((${now:-0} > $1)); }

title "Three hosts and a client on one switch"
ip netns add "$lab-switch"
ip -n "$lab-switch" link add lan type bridge
ip -n "$lab-switch" link set lan up
plug client
ip -n "$lab-client" address add 10.77.0.100/24 dev uplink
for host in a b c; do
  plug "$host"
  ip -n "$lab-$host" link add br0 type bridge
  ip -n "$lab-$host" link set uplink master br0
  ip -n "$lab-$host" link set br0 up
  ip -n "$lab-$host" address add "${address[$host]}/24" dev br0
  mkdir -p "$work/$host"
done
echo "a 10.77.0.1, b 10.77.0.2, c 10.77.0.3, client 10.77.0.100: each a network namespace"

title "One file says which hosts belong together"
on a mycelium vm init 2>/dev/null
for host in b c; do
  mkdir -p "$work/$host/vm"
  cp "$work/a/vm/group.pem" "$work/$host/vm/"
done
echo "(copied to b and c)"

title "b and c stand by"
for host in b c; do start "$host" mycelium vm backup --listen "${address[$host]}:7400"; done
for host in b c; do patiently "$host stands by" grep -q 'standing by' "$work/$host.log"; done

title "a runs the guest: a kernel, and a program that numbers each thing it says"
"$here/guest-numbers.sh" "$work/initrd" "$bin/examples/numbering-guest"
ln -s "$kernel" "$work/vmlinuz"
cd "$work"
start a mycelium vm run --name demo --kernel vmlinuz --initrd initrd --append "console=ttyS0 quiet guest.ip=10.77.0.50/24" \
  --memory 96Mi --net tap:br0 --listen 10.77.0.1:7400 --backup 10.77.0.2:7400 --backup 10.77.0.3:7400
patiently "two backups are in sync" in_sync 2
on a mycelium vm status demo

title "The client speaks with 10.77.0.50, the guest, and checks every word"
echo 'client$ numbering-client 10.77.0.50 &'
ip netns exec "$lab-client" "$bin/examples/numbering-client" 10.77.0.50 > "$work/client.log" 2>&1 &
disown
patiently "the guest speaks" goes_on 20
patiently "the TCP connection carries lines" connection_lives 0
tail -n 1 "$work/client.log"

for ((kill = 1; kill <= kills; kill++)); do
  patiently "two backups are in sync" in_sync 2
  lost=$primary
  title "Host $lost loses its power: cable out, then kill -9 of everything on it"
  before=$(counted) said=$(lines)
  printf 'the guest is on %s; the client has heard %s numbers\n' "$lost" "$before"
  ip -n "$lab-switch" link set "to-$lost" down
  kill -9 $(ip netns pids "$lab-$lost")
  patiently "the guest goes on" goes_on "$((before + 20))"
  patiently "the same TCP connection carries more lines" connection_lives "$said"
  patiently "another host has the guest" in_sync 1
  tail -n 1 "$work/client.log"
  on "$primary" mycelium vm status demo

  title "$lost gets its power back, and becomes a backup"
  ip -n "$lab-switch" link set "to-$lost" up
  start "$lost" mycelium vm backup --listen "${address[$lost]}:7400"
  lost=
  patiently "two backups are in sync again" in_sync 2
  quietly "$primary" mycelium vm status demo | head -n 2
done

title "Moved by hand, while it runs"
target=a
[[ $primary != a ]] || target=b
on "$primary" mycelium vm migrate demo --to "${address[$target]}:7400"
before=$(counted) said=$(lines)
patiently "the guest goes on" goes_on "$((before + 20))"
patiently "the same TCP connection carries more lines" connection_lives "$said"

title "What the client saw"
tail -n 1 "$work/client.log"
if grep -q FAULT "$work/client.log"; then
  grep FAULT "$work/client.log"
  exit 1
fi
echo "No number was said twice with other content, none went back, and nothing the guest acknowledged was lost. One TCP
connection lived through it all."

title "Shut down"
patiently "the guest is on $target" in_sync 1
on "$primary" mycelium vm stop demo
