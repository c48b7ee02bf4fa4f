#!/usr/bin/env bash
# Shows the promise of the README on a machine that has nothing: a new Debian root file system with only the Rust
# toolchain, a clean clone of what is committed here, and the verbs in it, timed. Called by `make rehearse`, as root.
#   scripts/rehearse.sh [VERB...]        default: run test
#   REHEARSAL=FOLDER   where the root file system goes (removed at the end unless KEEP=1)
# It is a machine of its own but for the kernel and the network: own mount and process namespaces, own /dev/pts.
# The root is entered by pivot_root, not chroot: in a chroot the mount namespace's root is still the host's, and that
# is where a program that joins a container's mount namespace would come out.
set -euo pipefail
cd "$(dirname "$0")/.."
verbs=("$@"); ((${#verbs[@]})) || verbs=(run test)
root=${REHEARSAL:-/var/tmp/mycelium-rehearsal}
suite=bookworm
mirror=${MIRROR:-http://deb.debian.org/debian}

[[ $(id -u) == 0 ]] || { echo "rehearse: needs root" >&2; exit 1; }
command -v mmdebstrap >/dev/null || { echo "rehearse: needs mmdebstrap: scripts/setup.sh test" >&2; exit 1; }
if [[ -e $root ]]; then
  echo "rehearse: $root exists: remove it, or name another folder with REHEARSAL=" >&2
  exit 1
fi
cleanup() { [[ -n ${KEEP:-} ]] || rm -rf --one-file-system "$root"; }
trap cleanup EXIT

echo "rehearse: $suite with the Rust toolchain in $root"
mmdebstrap --quiet --variant=minbase --include=ca-certificates,make,git "$suite" "$root" "$mirror"
cp -a "$(rustc --print sysroot)" "$root/opt/rust"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
git clone -q . "$root/src/mycelium"

export root
inside=$(mktemp)
cat > "$inside" <<'SCRIPT'
set -euo pipefail
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/run"
cd "$root"
pivot_root . mnt
exec chroot . /usr/bin/env -i HOME=/root TERM=dumb PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0 bash -ec 'umount -l /mnt; cd /src/mycelium; exec make "$0"' "$verb"
SCRIPT
status=0
for verb in "${verbs[@]}"; do
  begun=$SECONDS
  said=passed
  verb=$verb unshare --mount --pid --fork --kill-child --propagation private bash "$inside" || { said=FAILED; status=1; }
  took=$((SECONDS - begun))
  printf 'rehearse: make %s %s in %d min %02d s\n' "$verb" "$said" $((took / 60)) $((took % 60))
done
rm -f "$inside"
exit "$status"
