#!/usr/bin/env bash
# Runs the example platform on a fresh engine and shows it working. Called by `make run`.
#   scripts/run.sh FOLDER_OF_BINARIES
set -euo pipefail
bin=$(realpath "${1:?folder of the binaries}")
data=${DATA_DIR:-/var/lib/mycelium}
listen=${LISTEN:-127.0.0.1:6443}
mycelium=$bin/mycelium
log=$(mktemp)
engine=

show() { printf '\n$ %s\n' "$*"; "$@"; }
stop() {
  status=$?
  if [[ -n $engine && -z ${KEEP:-} ]]; then
    show "$mycelium" down --data-dir "$data" || status=1
    wait "$engine" || true
  fi
  [[ $status == 0 ]] || { echo "--- engine log"; tail -n 40 "$log"; } >&2
  rm -f "$log"
  exit "$status"
}
trap stop EXIT

if [[ $(id -u) != 0 ]]; then
  echo "make run starts pods, so it needs root: sudo make run" >&2
  exit 1
fi

"$mycelium" image import --data-dir "$data" --binary "$bin/symphainy-platform" symphainy-platform:latest

echo; echo "\$ mycelium up --data-dir $data --listen $listen"
"$mycelium" up --data-dir "$data" --listen "$listen" >"$log" 2>&1 &
engine=$!
for _ in $(seq 200); do
  grep -q '^ready in' "$log" && break
  kill -0 "$engine" 2>/dev/null || { cat "$log" >&2; engine=; exit 1; }
  sleep 0.05
done
grep -E '^(store|api|ready)' "$log"

export KUBECONFIG=$data/admin.kubeconfig
show "$mycelium" apply -f examples/platform/
if command -v kubectl >/dev/null; then
  show kubectl rollout status deploy/symphainy-platform --timeout=120s
  show kubectl get deployment,pods,service -o wide
  show kubectl logs deploy/symphainy-platform
else
  show "$mycelium" wait deploy/symphainy-platform --for condition=Available --timeout 120
  show "$mycelium" get deployments,pods,services -o wide
  show "$mycelium" logs deploy/symphainy-platform
fi
address=$("$mycelium" get service symphainy-platform -o json | sed -n 's/.*"clusterIP": *"\([^"]*\)".*/\1/p' | head -1)
show curl -fsS "http://$address/health"; echo
show curl -fsS "http://$address/ready"; echo
show "$mycelium" status --data-dir "$data"
if [[ -n ${KEEP:-} ]]; then
  echo; echo "The engine is still running. export KUBECONFIG=$KUBECONFIG; stop it with: $mycelium down --data-dir $data"
fi
