#!/usr/bin/env bash
# Makes a guest of Debian's own packages with PostgreSQL in it: OUT/disk.raw, and OUT/initrd that finds it.
#   scripts/vm/guest-postgres.sh [OUT]       default: guests/postgres in the cache, so that it is made once
# The kernel comes from the cache that scripts/setup.sh fills. Does nothing when OUT is complete.
# In the guest PostgreSQL is as Debian installs it; /sbin/guest-init only gives it an address and starts it.
set -euo pipefail
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mycelium
out=${1:-$cache/guests/postgres} kernel=$cache/guest-kernel
[[ -e $out/complete ]] && exit 0
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mmdebstrap --quiet --variant=minbase --aptopt='APT::Install-Recommends "false"' \
  --include=postgresql-15,iproute2,procps,e2fsprogs bookworm "$work/root.tar" "${MIRROR:-http://deb.debian.org/debian}"
mkdir "$work/root"
tar -C "$work/root" --exclude='./dev/*' --exclude='./usr/share/doc/*' --exclude='./usr/share/locale/*' --exclude='./var/cache/apt/*' -xf "$work/root.tar"
cat > "$work/root/sbin/guest-init" <<'INIT'
#!/bin/bash
# The guest's first program. Its address comes from the kernel's command line: guest.ip=10.0.0.9/24
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run; mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm
for word in $(cat /proc/cmdline); do case $word in guest.ip=*) address=${word#guest.ip=} ;; esac; done
ip link set lo up; ip link set eth0 up; [[ -z ${address:-} ]] || ip address add "$address" dev eth0
pg_ctlcluster 15 main start
echo "guest: ready"
# Until the power button is pressed, as `mycelium vm stop` does.
for button in /dev/input/event*; do dd if="$button" of=/dev/null bs=24 count=1 2>/dev/null & done
wait -n
pg_ctlcluster 15 main stop -m fast
sync
mount -o remount,ro /
echo "guest: off"
echo o > /proc/sysrq-trigger
while :; do sleep 3600; done
INIT
chmod 755 "$work/root/sbin/guest-init"
cat >> "$work/root/etc/postgresql/15/main/postgresql.conf" <<'CONF'
listen_addresses = '*'
shared_buffers = '32MB'
CONF
echo 'host all all 0.0.0.0/0 trust' >> "$work/root/etc/postgresql/15/main/pg_hba.conf"
mke2fs -q -t ext4 -d "$work/root" "$out/disk.raw" 1G

# The initramfs loads the drivers of the virtual devices, and goes on to the disk.
mkdir -p "$work/initrd"/{bin,dev,proc,sys,root,lib/modules}
cp /bin/busybox "$work/initrd/bin/busybox"
cp "$kernel"/modules/*.ko "$work/initrd/lib/modules/"
cat > "$work/initrd/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
# In as many rounds as they need one another.
for round in 1 2 3 4; do
  for module in /lib/modules/*.ko; do /bin/busybox insmod $module 2>/dev/null; done
done
until [ -e /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 /dev/vda /root
exec /bin/busybox switch_root /root /sbin/guest-init
INIT
chmod 755 "$work/initrd/init"
(cd "$work/initrd" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) > "$out/initrd"
cp "$kernel/vmlinuz" "$out/vmlinuz"
touch "$out/complete"
