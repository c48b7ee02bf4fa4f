#!/usr/bin/env bash
# Installs the clients for Python and JavaScript that tests drive, each from its own registry, pinned, into the folder given.
# A registry that does not answer at all costs its client only; the test says so.
#   scripts/clients.sh FOLDER
set -euo pipefail
folder=${1:?folder}
sources=$(cd "$(dirname "$0")/../crates/mycelium/tests/clients" && pwd)
npm_version=10.9.3
npm_sha512=6Eh1u5Q+kIVXeA8e7l2c/HpnFFcwrkt37xDMujD5be1gloWa9p6j3Fsv3mByXXmqJHy+2cElRMML8opNT7xIJQ==

answers() {
  curl -sS -m 20 -o /dev/null "$1" || { echo "clients: $1 does not answer: tests do without the client for $2" >&2; return 1; }
}

# Makes a folder anew if what it is made of has changed: `kept NAME FILE...`, then `keep NAME`.
kept() {
  local name=$1
  shift
  made_of=$(cat "$@" | sha256sum)
  [[ $(cat "$folder/$name/.made-of" 2>/dev/null) == "$made_of" ]]
}

keep() {
  echo "$made_of" > "$work/.made-of"
  rm -rf "${folder:?}/$1"
  mv "$work" "$folder/$1"
}

python() {
  kept python "$sources/python/requirements.txt" && return
  answers https://pypi.org/simple/kubernetes/ Python || return 0
  echo "clients: installing the client for Python"
  work=$folder/.python-new
  rm -rf "$work"
  python3 -m venv "$work"
  "$work/bin/python" -m pip install -q --disable-pip-version-check --no-compile -r "$sources/python/requirements.txt"
  keep python
}

javascript() {
  kept javascript "$sources"/javascript/package*.json && return
  answers https://registry.npmjs.org/ JavaScript || return 0
  echo "clients: installing the client for JavaScript"
  work=$folder/.javascript-new
  rm -rf "$work"
  mkdir -p "$work/npm"
  cp "$sources"/javascript/package*.json "$work/"
  # Debian's npm brings hundreds of packages along; the registry's own is one.
  curl -fsSL "https://registry.npmjs.org/npm/-/npm-$npm_version.tgz" -o "$work/npm.tgz"
  [[ $(openssl dgst -sha512 -binary "$work/npm.tgz" | base64 -w0) == "$npm_sha512" ]] || { echo "clients: npm $npm_version is not what is pinned" >&2; exit 1; }
  tar -xzf "$work/npm.tgz" -C "$work/npm" --strip-components=1
  (cd "$work" && node npm/bin/npm-cli.js ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null)
  rm -rf "$work/npm" "$work/npm.tgz"
  keep javascript
}

mkdir -p "$folder"
python
javascript
