#!/usr/bin/env bash
# Puts a current kubectl into the folder given, unless the one in PATH will do. Debian 12's is 1.20; exec, attach and
# port-forward over WebSocket need 1.31. Takes the released binary where dl.k8s.io can be reached, else builds it
# from the Go module proxy.
#   scripts/kubectl.sh FOLDER
set -euo pipefail
folder=${1:?folder}
version=v1.35.0
go_version=go1.25.5
go_sha256_amd64=8cea6783dab64d68b38f5b81ecd38d45155a3c06638991acc6af19e0fca80edb
go_sha256_arm64=4d31d22f75fed99025f7b082319eabeb74106d11e343fc203b336ba2afdeb3a1
here=$(cd "$(dirname "$0")" && pwd)

case $(uname -m) in
  x86_64) arch=amd64 ;;
  aarch64) arch=arm64 ;;
  *) echo "kubectl: no recipe for $(uname -m): put kubectl 1.31 or later into PATH" >&2; exit 1 ;;
esac

# Is this kubectl 1.31 or later?
current() {
  local minor
  minor=$("$1" version --client 2>/dev/null | sed -n 's/^Client Version: .*v1\.\([0-9]*\)\..*/\1/p' | head -1)
  [[ -n $minor && $minor -ge 31 ]]
}

download() {
  local base=https://dl.k8s.io/release/$version/bin/linux/$arch/kubectl
  curl -fsSL --connect-timeout 5 -o "$work/kubectl" "$base" 2>/dev/null || return 1
  curl -fsSL --connect-timeout 5 -o "$work/kubectl.sha256" "$base.sha256" 2>/dev/null || return 1
  echo "$(cat "$work/kubectl.sha256")  $work/kubectl" | sha256sum --check --quiet
}

# A Go toolchain: the one in PATH if it is new enough, else the one the module proxy has, checked against its pinned sum.
toolchain() {
  if command -v go >/dev/null && [[ $(go env GOVERSION) =~ ^go1\.([0-9]+) && ${BASH_REMATCH[1]} -ge 25 ]]; then
    command -v go
    return
  fi
  local sum=go_sha256_$arch name=golang.org/toolchain@v0.0.1-$go_version.linux-$arch
  curl -fsSL -o "$work/go.zip" "https://proxy.golang.org/golang.org/toolchain/@v/v0.0.1-$go_version.linux-$arch.zip"
  echo "${!sum}  $work/go.zip" | sha256sum --check --quiet >&2
  busybox unzip -q "$work/go.zip" -d "$work" >&2
  rm "$work/go.zip"
  chmod -R u+x "$work/$name/bin" "$work/$name/pkg/tool"
  echo "$work/$name/bin/go"
}

build() {
  local go
  go=$(toolchain)
  echo "kubectl: building $version with $go" >&2
  # Modules and build cache are dropped with the work folder: only the program is kept.
  (cd "$here/kubectl" && GOTOOLCHAIN=local GOFLAGS=-modcacherw GOPATH=$work/go GOCACHE=$work/cache CGO_ENABLED=0 \
    "$go" build -trimpath -o "$work/kubectl" \
    -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=35" .)
}

if current kubectl || current "$folder/kubectl"; then exit 0; fi
mkdir -p "$folder"
work=$(mktemp -d "$folder/.kubectl-XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "kubectl: the one in PATH is missing or older than 1.31; getting $version into $folder"
download || build
chmod 755 "$work/kubectl"
current "$work/kubectl" || { echo "kubectl: what was made does not run" >&2; exit 1; }
mv "$work/kubectl" "$folder/kubectl"
