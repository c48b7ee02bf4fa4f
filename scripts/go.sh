# Sourced: a Go toolchain, for what is only published as Go modules.

go_version=go1.25.5
go_sha256_amd64=8cea6783dab64d68b38f5b81ecd38d45155a3c06638991acc6af19e0fca80edb
go_sha256_arm64=4d31d22f75fed99025f7b082319eabeb74106d11e343fc203b336ba2afdeb3a1

# The toolchain in PATH if it is new enough, else the one the module proxy has, checked against its pinned sum.
#   go_toolchain WORK_FOLDER ARCH
go_toolchain() {
  local work=$1 sum=go_sha256_$2 name=golang.org/toolchain@v0.0.1-$go_version.linux-$2
  if command -v go >/dev/null && [[ $(go env GOVERSION) =~ ^go1\.([0-9]+) && ${BASH_REMATCH[1]} -ge 25 ]]; then
    command -v go
    return
  fi
  curl -fsSL -o "$work/go.zip" "https://proxy.golang.org/golang.org/toolchain/@v/v0.0.1-$go_version.linux-$2.zip"
  echo "${!sum}  $work/go.zip" | sha256sum --check --quiet >&2
  busybox unzip -q "$work/go.zip" -d "$work" >&2
  rm "$work/go.zip"
  chmod -R u+x "$work/$name/bin" "$work/$name/pkg/tool"
  echo "$work/$name/bin/go"
}
