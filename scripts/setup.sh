#!/usr/bin/env bash
# Installs the Debian packages that building, running and testing need. Does nothing, and needs no network, when they are there.
#   scripts/setup.sh run|test|bench|vm        (all but run: also QEMU, and a kernel for test guests;
#                                            test: also the root file system of test images)
set -euo pipefail

build=(libseccomp-dev gcc libc6-dev make pkg-config)
run=(nftables iproute2 kmod curl ca-certificates)
test=(mount util-linux docker-registry skopeo busybox-static mmdebstrap redis-server redis-tools nginx-light wrk dnsutils procps conntrack
  apache2-utils openssl e2fsprogs syslinux mtools python3-venv nodejs)
vm=(busybox-static e2fsprogs mmdebstrap)
bench=(etcd-server podman containerd runc crun)

case "${1:-run}" in
  run) want=("${build[@]}" "${run[@]}") ;;
  test) want=("${build[@]}" "${run[@]}" "${test[@]}") ;;
  bench) want=("${build[@]}" "${run[@]}" "${test[@]}" "${bench[@]}") ;;
  vm) want=("${build[@]}" "${run[@]}" "${vm[@]}") ;;
  *) echo "usage: $0 run|test|bench|vm" >&2; exit 2 ;;
esac

cache=${XDG_CACHE_HOME:-$HOME/.cache}/mycelium

installed() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'install ok installed'; }

# QEMU, newer than Debian 12's own where the backport can be had (7.2 works too), and the kernel that test guests boot:
# unpacked into the cache, not installed.
virtual_machines() {
  local qemu=(qemu-system-x86 qemu-utils)
  if ! command -v qemu-system-x86_64 >/dev/null || ! command -v qemu-img >/dev/null; then
    [[ $(id -u) == 0 ]] || { echo "setup: QEMU is missing. Run as root: apt-get install ${qemu[*]}" >&2; exit 1; }
    echo "setup: installing ${qemu[*]}"
    export DEBIAN_FRONTEND=noninteractive
    local suite=
    if grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release; then
      suite=bookworm-backports
      grep -rqs "$suite" /etc/apt/sources.list /etc/apt/sources.list.d ||
        echo "deb ${MIRROR:-http://deb.debian.org/debian} $suite main" > /etc/apt/sources.list.d/mycelium-backports.list
    fi
    apt-get update -qq
    # Both from one place: the two of different versions do not go together.
    { [[ -n $suite ]] && apt-get install -y -qq --no-install-recommends -t "$suite" "${qemu[@]}" </dev/null >/dev/null; } ||
      apt-get install -y -qq --no-install-recommends "${qemu[@]}" </dev/null >/dev/null
  fi

  local guest=$cache/guest-kernel
  local modules=(virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk failover net_failover virtio_net
    crc16 crc32c_generic libcrc32c mbcache jbd2 ext4 button evdev nls_cp437 nls_ascii fat vfat)
  [[ ! -e $guest/vmlinuz || $(cat "$guest/list" 2>/dev/null) != "${modules[*]}" ]] || return 0
  echo "setup: fetching a kernel for test guests"
  local work package
  work=$(mktemp -d)
  chmod 755 "$work"
  package=$(apt-cache depends --important linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1)
  if [[ -z $package ]]; then
    [[ $(id -u) != 0 ]] || apt-get update -qq
    package=$(apt-cache depends --important linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1)
  fi
  (cd "$work" && apt-get download -qq "$package" 2>/dev/null && dpkg-deb -x "$package"_*.deb unpacked)
  mkdir -p "$guest/modules"
  local module
  # Some are built into some kernels.
  for module in "${modules[@]}"; do
    find "$work/unpacked" -name "$module.ko*" -exec cp {} "$guest/modules/" \;
  done
  find "$guest/modules" -name '*.xz' -exec xz -d {} +
  cp "$work"/unpacked/boot/vmlinuz-* "$guest/vmlinuz.new"
  mv "$guest/vmlinuz.new" "$guest/vmlinuz"
  echo "${modules[*]}" > "$guest/list"
  rm -rf "$work"
}

# The root file system of the images that tests run: nginx, Redis, PostgreSQL and a shell with all they depend on, as
# Debian's packages unpack, but for what these do not use: manuals, Perl, PostgreSQL's compiler of queries.
# Kept in the cache, beside a list of what it was made of.
servers() {
  local tar=$cache/servers.tar suite=bookworm packages=base-passwd,dash,coreutils,nginx-light,redis-server,postgresql-15
  local exclude=(/usr/share/{doc,man,locale,i18n,perl,perl5,postgresql-common}/'*' /usr/lib/x86_64-linux-gnu/{perl,perl-base,gconv}/'*'
    /usr/lib/x86_64-linux-gnu/lib{LLVM,z3}'*' /usr/lib/postgresql/15/lib/{bitcode/'*',llvmjit'*'})
  local made_of="$suite $packages ${exclude[*]}"
  [[ ! -e $tar || $(cat "$tar.list" 2>/dev/null) != "$made_of" ]] || return 0
  echo "setup: making the root file system of test images with mmdebstrap"
  mkdir -p "$cache"
  # base-passwd's own script, which would copy these, does not run, nor the one that adds PostgreSQL's user.
  mmdebstrap --quiet --variant=extract --include="$packages" "${exclude[@]/#/--dpkgopt=path-exclude=}" \
    --extract-hook='for f in passwd group; do cp "$1/usr/share/base-passwd/$f.master" "$1/etc/$f"; done
      echo postgres:x:999:999::/tmp:/bin/sh >> "$1/etc/passwd"; echo postgres:x:999: >> "$1/etc/group"' \
    --format=tar "$suite" "$tar.new" "${MIRROR:-http://deb.debian.org/debian}"
  mv "$tar.new" "$tar"
  echo "$made_of" > "$tar.list"
}

missing=()
for package in "${want[@]}"; do
  installed "$package" || missing+=("$package")
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

# Tests drive a kubectl and other clients; `make run` does without.
case ${1:-run} in
  bench) "$(dirname "$0")/tools.sh" "${TOOLS:-$cache/bin}" kubectl ;;
  test)
    "$(dirname "$0")/tools.sh" "${TOOLS:-$cache/bin}" kubectl clients
    "$(dirname "$0")/clients.sh" "$cache/clients"
    ;;
esac

[[ ${1:-run} == run ]] || virtual_machines
[[ ${1:-run} != test ]] || servers
