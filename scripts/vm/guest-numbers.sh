#!/usr/bin/env bash
# Makes the small guest of tests and demonstrations: an initramfs whose only program is examples/numbering-guest.rs.
#   scripts/vm/guest-numbers.sh OUT PROGRAM
# OUT becomes the initramfs; PROGRAM must be linked statically. The kernel's modules come from the cache that
# scripts/setup.sh fills. The guest takes its address from the kernel's command line (guest.ip=10.0.0.9/24), and shuts
# down when its power button is pressed. What a seed for cloud-init holds is under /seed.
set -euo pipefail
out=$1 program=$2
modules=${XDG_CACHE_HOME:-$HOME/.cache}/mycelium/guest-kernel/modules
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{bin,dev,proc,sys,seed,lib/modules}
cp "$(command -v busybox)" "$work/bin/busybox"
install -m 755 "$program" "$work/bin/guest"
for module in failover net_failover virtio_net virtio_blk virtio_pci virtio_pci_modern_dev virtio_pci_legacy_dev virtio_ring virtio button evdev \
  nls_cp437 nls_ascii fat vfat; do
  [[ ! -e $modules/$module.ko ]] || cp "$modules/$module.ko" "$work/lib/modules/"
done
cat > "$work/init" <<'INIT'
#!/bin/busybox sh
busybox() { /bin/busybox "$@"; }
busybox mount -t proc proc /proc; busybox mount -t devtmpfs devtmpfs /dev
# In as many rounds as they need one another.
for round in 1 2 3 4; do
  for module in /lib/modules/*.ko; do busybox insmod $module 2>/dev/null; done
done
for button in /dev/input/event*; do
  { busybox dd if=$button of=/dev/null bs=24 count=1 2>/dev/null && echo "guest: off" && busybox poweroff -f; } &
done
# A seed for cloud-init, if there is one.
disk=$(busybox findfs LABEL=CIDATA 2>/dev/null) && busybox mount -t vfat -o ro $disk /seed && echo "guest: seed on $disk"
for word in $(busybox cat /proc/cmdline); do case $word in guest.ip=*) address=${word#guest.ip=} ;; esac; done
busybox ip link set eth0 up; busybox ip address add "$address" dev eth0
exec /bin/guest
INIT
chmod 755 "$work/init"
(cd "$work" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) > "$out.new"
mv "$out.new" "$out"
