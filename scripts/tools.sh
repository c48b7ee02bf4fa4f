#!/usr/bin/env bash
# Puts programs that Debian does not have, or only too old, into the folder given:
#   scripts/tools.sh FOLDER kubectl            kubectl, unless the one in PATH will do. Debian 12's is 1.20; exec, attach and
#                                              port-forward over WebSocket need 1.31. The released binary where dl.k8s.io
#                                              can be reached, else built from the Go module proxy
#   scripts/tools.sh FOLDER kubectl clients    also Helm and the operator of scripts/go, built from the Go module proxy
set -euo pipefail
folder=${1:?folder}
shift
version=v1.35.1
here=$(cd "$(dirname "$0")" && pwd)
source "$here/go.sh"

case $(uname -m) in
  x86_64) arch=amd64 ;;
  aarch64) arch=arm64 ;;
  *) echo "tools: no recipe for $(uname -m): put kubectl 1.31 or later into PATH" >&2; exit 1 ;;
esac

# Is this kubectl 1.31 or later?
current() {
  local minor
  minor=$("$1" version --client 2>/dev/null | sed -n 's/^Client Version: .*v1\.\([0-9]*\)\..*/\1/p' | head -1)
  [[ -n $minor && $minor -ge 31 ]]
}

download() {
  local base=https://dl.k8s.io/release/$version/bin/linux/$arch/kubectl
  curl -fsSL --connect-timeout 5 -o "$work/bin/kubectl" "$base" 2>/dev/null || return 1
  curl -fsSL --connect-timeout 5 -o "$work/kubectl.sha256" "$base.sha256" 2>/dev/null || return 1
  echo "$(cat "$work/kubectl.sha256")  $work/bin/kubectl" | sha256sum --check --quiet
}

# Builds packages of scripts/go at once: they share most of what they are made of.
build() {
  local go
  go=$(go_toolchain "$work" "$arch")
  echo "tools: building $* with $go" >&2
  # Modules and build cache are dropped with the work folder: only the programs are kept.
  (cd "$here/go" && GOTOOLCHAIN=local GOFLAGS=-modcacherw GOPATH=$work/go GOCACHE=$work/cache CGO_ENABLED=0 \
    "$go" build -trimpath -o "$work/bin/" \
    -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=35" "$@")
}

mkdir -p "$folder"
work=$(mktemp -d "$folder/.tools-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
packages=()

if ! current kubectl && ! current "$folder/kubectl"; then
  echo "tools: the kubectl in PATH is missing or older than 1.31; getting $version into $folder"
  download || { rm -f "$work/bin/kubectl"; packages+=(./kubectl); }
fi
made_of=$(cat "$here"/go/go.{mod,sum} "$here"/go/operator/*.go | sha256sum)
if [[ ${2:-} == clients && $(cat "$folder/.clients" 2>/dev/null) != "$made_of" ]]; then
  if curl -sS -m 20 -o /dev/null https://proxy.golang.org/; then
    packages+=(helm.sh/helm/v3/cmd/helm ./operator)
  else
    echo "tools: proxy.golang.org does not answer: tests do without Helm and the operator built with Go" >&2
  fi
fi
((${#packages[@]} == 0)) || build "${packages[@]}"
if [[ -e $work/bin/kubectl ]]; then
  chmod 755 "$work/bin/kubectl"
  current "$work/bin/kubectl" || { echo "tools: the kubectl that was made does not run" >&2; exit 1; }
fi
[[ ! -e $work/bin/helm ]] || echo "$made_of" > "$work/bin/.clients"
find "$work/bin" -type f -exec mv {} "$folder/" \;
