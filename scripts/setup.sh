#!/usr/bin/env bash
# Installs the Debian packages that building, running and testing need. Does nothing, and needs no network, when they are there.
#   scripts/setup.sh run|test|bench|vm
set -euo pipefail

build=(libseccomp-dev gcc libc6-dev make pkg-config)
run=(nftables iproute2 kmod curl ca-certificates)
test=(mount util-linux docker-registry skopeo busybox-static mmdebstrap redis-server redis-tools nginx-light wrk dnsutils procps conntrack apache2-utils openssl)
vm=(qemu-system-x86 e2fsprogs mmdebstrap)
bench=(etcd-server podman containerd runc crun)

case "${1:-run}" in
  run) want=("${build[@]}" "${run[@]}") ;;
  test) want=("${build[@]}" "${run[@]}" "${test[@]}") ;;
  bench) want=("${build[@]}" "${run[@]}" "${test[@]}" "${bench[@]}") ;;
  vm) want=("${build[@]}" "${run[@]}" "${vm[@]}") ;;
  *) echo "usage: $0 run|test|bench|vm" >&2; exit 2 ;;
esac

missing=()
for package in "${want[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if ((${#missing[@]})); then
  if [[ $(id -u) != 0 ]]; then
    echo "setup: these packages are missing: ${missing[*]}. Run as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  echo "setup: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # policy-rc.d keeps packages from starting their daemons: nothing here needs one that runs by itself.
  policy=/usr/sbin/policy-rc.d
  made=
  [[ -e $policy ]] || { printf '#!/bin/sh\nexit 101\n' > "$policy"; chmod 755 "$policy"; made=yes; }
  apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
  [[ -z $made ]] || rm -f "$policy"
fi

# Tests drive a kubectl; `make run` does without one.
if [[ ${1:-run} == test || ${1:-run} == bench ]]; then
  "$(dirname "$0")/kubectl.sh" "${TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/mycelium/bin}"
fi
