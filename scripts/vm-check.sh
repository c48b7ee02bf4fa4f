#!/usr/bin/env bash
# Runs the engine in a virtual machine with Debian's own kernel and nothing but cgroup v2, and checks there what
# differs from a machine with version 1: limits, OOM kills, exec, adoption, removal. Called by `make vm-check`.
#   scripts/vm-check.sh FOLDER_OF_BINARIES
# It works with KVM or, slowly, without. The root file system is kept in $TOOLS/../vm for the next run.
set -euo pipefail
bin=$(realpath "${1:?folder of the binaries}")
here=$(cd "$(dirname "$0")" && pwd)
cache=${TOOLS:-$HOME/.cache/mycelium/bin}/../vm
limit_secs=${LIMIT:-900}
packages=linux-image-cloud-amd64,initramfs-tools,nftables,iproute2,kmod,procps,busybox-static,mount,curl

[[ $(id -u) == 0 ]] || { echo "vm-check: needs root, to make a root file system" >&2; exit 1; }
mkdir -p "$cache"
if [[ ! -e $cache/root/vmlinuz ]]; then
  echo "vm-check: making the root file system"
  rm -rf --one-file-system "$cache/root"
  mmdebstrap --quiet --variant=apt --include="$packages" bookworm "$cache/root.new" "${MIRROR:-http://deb.debian.org/debian}"
  rm -rf "$cache/root.new"/var/cache/apt/* "$cache/root.new"/var/lib/apt/lists/* "$cache/root.new"/usr/share/{doc,locale,man}
  mv "$cache/root.new" "$cache/root"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install -D -m 755 "$bin/mycelium" "$cache/root/usr/local/bin/mycelium"
install -m 755 "$here/vm-guest.sh" "$cache/root/init-check"
truncate -s 2G "$work/disk"
mke2fs -q -t ext4 -d "$cache/root" "$work/disk"

# /dev/kvm may be there and yet run no ordinary kernel: the first boot message tells.
boot() {
  timeout "$limit_secs" qemu-system-x86_64 -accel "$1" -cpu max -m 1536 -smp 2 -nodefaults -display none -no-reboot \
    -kernel "$cache/root/vmlinuz" -initrd "$cache/root/initrd.img" \
    -append "root=/dev/vda rw console=ttyS0 quiet panic=-1 init=/init-check" \
    -drive "file=$work/disk,if=virtio,format=raw,cache=unsafe" \
    -device virtio-rng-pci -serial stdio </dev/null 2>"$work/qemu.log" | tr -d '\r' | tee "$work/console"
}
works_with_kvm() {
  [[ -w /dev/kvm ]] && LC_ALL=C timeout 20 qemu-system-x86_64 -accel kvm -cpu max -m 512 -nodefaults -display none -no-reboot \
    -kernel "$cache/root/vmlinuz" -append "console=ttyS0 panic=-1" -serial stdio </dev/null 2>/dev/null | grep -q 'Linux version'
}
accel=tcg
works_with_kvm && accel=kvm
echo "vm-check: booting with $accel, at most $limit_secs s"
boot "$accel" || true
cat "$work/qemu.log" >&2
grep -q '^vm-check: passed$' "$work/console"
