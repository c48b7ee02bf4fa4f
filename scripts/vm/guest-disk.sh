#!/usr/bin/env bash
# Makes a disk image that boots by itself: a FAT file system with a boot loader (syslinux), a kernel and its initramfs.
#   scripts/vm/guest-disk.sh OUT KERNEL INITRD COMMAND_LINE
# OUT becomes a qcow2 image. Nothing is mounted, so it needs no privileges.
set -euo pipefail
out=$1 kernel=$2 initrd=$3 append=$4
for program in syslinux mcopy mformat qemu-img; do
  command -v "$program" >/dev/null || { echo "guest-disk: $program is missing: run scripts/setup.sh test" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/syslinux.cfg" <<CFG
SERIAL 0
DEFAULT guest
LABEL guest
  LINUX vmlinuz
  INITRD initrd
  APPEND $append
CFG
size_kib=$((($(stat -c %s "$kernel") + $(stat -c %s "$initrd")) / 1024 + 4096))
truncate -s "$((size_kib / 1024 + 1))M" "$work/disk"
# Whole cylinders of 32 sectors by 64 heads: a mebibyte each.
mformat -i "$work/disk" -h 64 -s 32 -t "$((size_kib / 1024 + 1))" -v GUEST ::
mcopy -i "$work/disk" "$kernel" ::vmlinuz
mcopy -i "$work/disk" "$initrd" ::initrd
mcopy -i "$work/disk" "$work/syslinux.cfg" ::
syslinux --install "$work/disk"
qemu-img convert -q -f raw -O qcow2 -c "$work/disk" "$out.new"
mv "$out.new" "$out"
