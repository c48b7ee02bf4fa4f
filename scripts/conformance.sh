#!/usr/bin/env bash
# Runs the conformance tests of Kubernetes 1.35 against a fresh engine with two nodes and says how many passed. Called by `make
# conformance`, as root. Suite, kubectl and the programs of the test images are built from the Go module proxy, the
# images' root file system from Debian; they are kept in the cache, so that the second run starts at once.
#   scripts/conformance.sh FOLDER_OF_BINARIES
#   FOCUS=REGEX   only tests whose name matches, such as FOCUS=sig-apps        SKIP=REGEX   all but these
#   PROCS=2       tests at once (those marked [Serial] run after the others, one by one)
#   REPORT=FOLDER where output and engine log stay (default: target/conformance)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(realpath "${1:?folder of the binaries}")
version=v1.35.0
cache=${TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/mycelium/bin}/../conformance-$version
report=$(realpath -m "${REPORT:-$here/../target/conformance}")
listen=${LISTEN:-127.0.0.1:16443}
pods=${POD_CIDR:-10.45.0.0/16} services=${SERVICE_CIDR:-10.46.0.0/16}
source "$here/go.sh"

[[ $(id -u) == 0 ]] || { echo "conformance: starts pods, so it needs root" >&2; exit 1; }
case $(uname -m) in
  x86_64) arch=amd64 ;;
  aarch64) arch=arm64 ;;
  *) echo "conformance: no recipe for $(uname -m)" >&2; exit 1 ;;
esac
mkdir -p "$cache" "$report"
cache=$(realpath "$cache")

# Everything that is Go. Modules and build cache are dropped: a few GB, and not needed again.
programs() {
  local go work flags
  work=$(mktemp -d "$cache/.build-XXXXXX")
  go=$(go_toolchain "$work" "$arch")
  echo "conformance: building the suite $version (the first time only, some 10 minutes)"
  flags="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=35"
  (
    cd "$here/conformance"
    export GOTOOLCHAIN=local GOFLAGS="-modcacherw -trimpath" CGO_ENABLED=0
    [[ -n ${GO_KEEP:-} ]] || export GOPATH=$work/go GOCACHE=$work/cache
    "$go" test -c -vet=off -ldflags "$flags" -o "$work/e2e.test" k8s.io/kubernetes/test/e2e
    for program in github.com/onsi/ginkgo/v2/ginkgo k8s.io/kubernetes/cmd/kubectl k8s.io/kubernetes/test/images/nonewprivs k8s.io/sample-apiserver; do
      "$go" build -ldflags "$flags" -o "$work/$(basename "$program")" "$program"
    done
    "$go" build -ldflags "$flags -X main.Version=2.59" -o "$work/agnhost" k8s.io/kubernetes/test/images/agnhost
    "$go" build -ldflags "$flags" -o "$work/etcd" go.etcd.io/etcd/server/v3
    # What the images hold besides programs.
    source=$("$go" list -m -f '{{.Dir}}' k8s.io/kubernetes)/test/images
    mkdir "$work/files"
    cp -r "$source/agnhost/porter" "$source/nautilus" "$work/files"
  )
  chmod -R u+w "$work/files"
  mv "$work"/{files,ginkgo,kubectl,nonewprivs,sample-apiserver,agnhost,etcd,e2e.test} "$cache/"
  rm -rf "$work"
}

# One root file system for all images that need more than busybox, so that they share its layer.
root() {
  local root
  root=$(mktemp -d "$cache/.root-XXXXXX")
  echo "conformance: building the test images"
  mmdebstrap --quiet --mode=root --variant=extract \
    --include=busybox-static,bind9-dnsutils,curl,netcat-openbsd,iproute2,bash,bash-static,libc-bin,ca-certificates,nginx-light \
    bookworm "$root" "${MIRROR:-http://deb.debian.org/debian}"
  rm -rf "$root"/usr/share/{doc,man,locale,info,bash-completion,lintian,zoneinfo} "$root"/var/{cache,lib} "$root"/etc/{resolv.conf,hostname}
  mkdir -p "$root"/{uploads,tmp,var/log/nginx,var/lib/nginx,usr/share/nginx/html}
  chmod 1777 "$root/tmp" "$root/uploads"
  cp "$cache"/files/porter/localhost.{crt,key} "$root/"
  cp "$cache"/files/nautilus/html/* "$root/"
  install -m 755 "$cache/agnhost" "$root/agnhost"
  ln -s agnhost "$root/agnhost-2"
  install -m 4755 "$cache/nonewprivs" "$root/usr/bin/nnp"
  # Who is who: one test expects these names and numbers.
  cat > "$root/etc/passwd" <<'PASSWD'
root:x:0:0:root:/root:/bin/sh
www-data:x:33:33::/:/bin/false
user-defined-in-image:x:1000:1000::/:/bin/sh
nobody:x:65534:65534::/:/bin/false
PASSWD
  cat > "$root/etc/group" <<'GROUP'
root:x:0:
www-data:x:33:
user-defined-in-image:x:1000:
group-defined-in-image:x:50000:user-defined-in-image
nogroup:x:65534:
GROUP
  echo '<h1>Welcome to nginx!</h1>' > "$root/usr/share/nginx/html/index.html"
  cat > "$root/etc/nginx/nginx.conf" <<'NGINX'
worker_processes 1;
error_log stderr;
pid /tmp/nginx.pid;
events { worker_connections 512; }
http { include mime.types; access_log off; server { listen 80; root /usr/share/nginx/html; } }
NGINX
  local applet
  for applet in $("$root/bin/busybox" --list); do
    [[ -n $(find "$root"/{bin,sbin,usr/bin,usr/sbin} -maxdepth 1 -name "$applet" -print -quit) ]] || ln -s /bin/busybox "$root/bin/$applet"
  done
  ln -sf nc.openbsd "$root/bin/nc"
  # Not Debian's busybox: as a shell it runs its own nc and wget whatever PATH says, and drops variables with odd names.
  ln -sf bash "$root/bin/sh"
  tar --owner=0 --group=0 -C "$root" --exclude=./bin/bash-static -cf "$cache/tools.tar.new" .
  mkdir -p "$root/small"/{bin,etc,tmp,root}
  chmod 1777 "$root/small/tmp"
  cp "$root/bin/busybox" "$root/small/bin/"
  cp "$root/bin/bash-static" "$root/small/bin/sh"
  cp "$root"/etc/{passwd,group} "$root/small/etc/"
  for applet in $("$root/bin/busybox" --list); do [[ $applet == busybox || $applet == sh ]] || ln -s busybox "$root/small/bin/$applet"; done
  tar --owner=0 --group=0 -C "$root/small" -cf "$cache/busybox.tar" .
  mv "$cache/tools.tar.new" "$cache/tools.tar"
  rm -rf "$root"
}

# The images, under the names that the suite asks for.
images() {
  local registry=registry.k8s.io/e2e-test-images path=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin tag
  load() { "$bin/mycelium" image import --data-dir "$data" --env "$path" "$@" >>"$report/images.log"; }
  for tag in 2.59 2.55; do load "$cache/tools.tar" "$registry/agnhost:$tag" --entrypoint /agnhost --cmd pause; done
  load "$cache/tools.tar" registry.k8s.io/pause:3.10.1 --entrypoint /agnhost --entrypoint pause
  load "$cache/tools.tar" "$registry/nautilus:1.7" --entrypoint /agnhost --cmd test-webserver
  for tag in 1.14-4 1.15-4; do load "$cache/tools.tar" "$registry/nginx:$tag" --cmd nginx --cmd -g --cmd 'daemon off;'; done
  load "$cache/tools.tar" "$registry/jessie-dnsutils:1.7" --cmd bash
  load "$cache/tools.tar" "$registry/nonewprivs:1.3" --cmd nnp
  # One test reads what busybox's own shell says of a read-only file system, and fails with this one.
  load "$cache/busybox.tar" "$registry/busybox:1.37.0-1" --cmd sh
  load "$cache/busybox.tar" "$registry/nonroot:1.4" --cmd sh --user 1234
  load --binary "$cache/sample-apiserver" "$registry/sample-apiserver:1.29.2"
  load --file "/usr/local/bin/etcd=$cache/etcd" registry.k8s.io/etcd:3.6.6-0
}

start() {
  "$bin/mycelium" up --nodes 2 --data-dir "$data" --listen "$listen" --pod-cidr "$pods" --service-cidr "$services" >"$report/engine.log" 2>&1 &
  engine=$!
  for _ in $(seq 300); do
    ! grep -q '^ready in' "$report/engine.log" || return 0
    kill -0 "$engine" 2>/dev/null || break
    sleep 0.1
  done
  tail -n 20 "$report/engine.log" >&2
  exit 1
}

# Runs the tests whose name matches, not those that match $2, $3 at once.
suite() {
  local skip=(); [[ -z $2 ]] || skip=(--skip="$2")
  "$cache/ginkgo" run --no-color --timeout=6h --procs="$3" --focus="$1" "${skip[@]}" --output-dir="$report" --json-report="$4.json" \
    "$cache/e2e.test" -- --kubeconfig="$data/admin.kubeconfig" --provider=skeleton --kubectl-path="$cache/kubectl" \
    --dump-logs-on-failure=false --num-nodes=1 --allowed-not-ready-nodes=0 --disable-log-dump \
    >"$report/$4.log" 2>&1 || true
  sed -n 's/^\(Ran [0-9]* of .*\)$/  \1/p' "$report/$4.log" | tail -1
}

[[ -x $cache/e2e.test ]] || programs
[[ -s $cache/tools.tar ]] || root
data=$(mktemp -d /var/tmp/mycelium-conformance-XXXXXX)
engine=
stop() {
  [[ -z $engine ]] || "$bin/mycelium" down --data-dir "$data" >/dev/null || true
  rm -rf "$data"
}
trap stop EXIT
rm -f "$report"/*.json "$report"/*.log
images
start
export KUBECONFIG=$data/admin.kubeconfig PATH=$cache:$PATH
focus=${FOCUS:-.}
skip=${SKIP:+|$SKIP}
echo "conformance: running (output in $report)"
suite "${focus}.*\[Conformance\]" "\[Serial\]|\[Disruptive\]$skip" "${PROCS:-2}" parallel
suite "${focus}.*\[Serial\].*\[Conformance\]" "${SKIP:-}" 1 serial

count() { cat "$report"/{parallel,serial}.log | sed -n "s/.*-- .*\b\([0-9]*\) $1.*/\1/p" | awk '{ n += $1 } END { print n + 0 }'; }
passed=$(count Passed) failed=$(count Failed)
cat "$report"/{parallel,serial}.log | sed -n 's/^ *\[FAIL\] \(\[sig.*\)/failed: \1/p' | sort -u
echo "conformance: $passed passed, $failed failed, $((441 - passed - failed)) of 441 not run"
[[ $failed == 0 && $passed -gt 0 ]]
