#!/bin/bash
# Installs what building and running compute-agent on a bare Debian 12 machine needs: the compiler, liblxc, the tools that the
# agent calls, debootstrap for the control plane, id ranges for guests, and a Go toolchain if there is none.
# It can be run again at any time and then takes a moment.
#
#     tests/functional/prerequisites.sh [tests|tempest]
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

packages="build-essential pkg-config lxc-dev liblxc1 lxc
 xz-utils zstd squashfs-tools e2fsprogs iproute2 iputils-ping
 debootstrap ca-certificates git"

# For the tests: the programs of Open vSwitch, not its service, those that show what images carry, those that make disk images
# and file systems, and lxcfs, not its service either.
test_packages="openvswitch-switch acl attr libcap2-bin bzip2 curl qemu-utils fdisk dosfstools btrfs-progs xfsprogs lxcfs"

# For Tempest: what shows a guest its own processors and time since boot in /proc.
tempest_packages="lxcfs"

# Go, in case the machine has none that is new enough: Debian's fetches this one, a module like any other, and checks its sum.
go_toolchain=golang.org/toolchain@v0.0.1-go1.26.8.linux-$(dpkg --print-architecture)
go_dir=/usr/local/lib/compute-agent-go

say() { printf 'prerequisites: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Other programs may use apt at the same time: wait for locks, keep the downloads in a folder of our own (an apt-get update
# elsewhere may be set up to empty the usual one), and try again.
apt() {
  local archives try
  archives=$(mktemp -d)
  mkdir "$archives/partial"
  for try in 1 2 3 4 5; do
    if apt-get -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -o Dir::Cache::archives="$archives" "$@" >>"$log" 2>&1; then
      rm -rf "$archives"
      return 0
    fi
    say "apt-get $1 did not work (try $try), see $log"
    sleep $((try * 5))
    dpkg --configure -a >>"$log" 2>&1 || true
    apt-get -q update >>"$log" 2>&1 || true
  done
  rm -rf "$archives"
  tail -n 20 "$log" >&2
  return 1
}

missing_packages() {
  local p
  for p in "$@"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed || printf '%s ' "$p"
  done
}

# No service of a package starts by itself.
install_missing() {
  local missing
  missing=$(missing_packages "$@")
  [ -n "$missing" ] || return 0
  say "installing $missing"
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    our_policy=/usr/sbin/policy-rc.d # which goes at the end
    printf '#!/bin/sh\nexit 101\n' >$our_policy
    chmod 755 $our_policy
  fi
  apt update
  # shellcheck disable=SC2086 # a list of words
  apt install -y --no-install-recommends $missing || die "cannot install $missing"
}

# A guest's ids come out of root's ranges.
id_range() {
  grep -qs '^root:' "$1" && return
  [ -z "$(tail -c1 "$1" 2>/dev/null)" ] || echo >>"$1" # its last line had no end
  echo 'root:1000000:1000000000' >>"$1"
}

has_go() {
  command -v go >/dev/null || return 1
  # From 1.21 on, go fetches the toolchain that go.mod asks for.
  go version | sed -nE 's/^go version go1\.([0-9]+).*/\1/p' | awk '{ exit !($1 >= 21) }'
}

install_go() {
  local answer cache try
  apt install -y --no-install-recommends golang-go jq || die "cannot install golang-go"
  say "fetching Go: ${go_toolchain#*@}"
  for try in 1 2 3 4; do
    answer=$(cd / && GO111MODULE=on GOFLAGS=-modcacherw /usr/bin/go mod download -json "$go_toolchain") || true
    cache=$(jq -r '.Dir // empty' <<<"$answer") || cache=
    [ -z "$cache" ] || break
    say "$(jq -r .Error <<<"$answer") (try $try)"
    [ $try = 4 ] || sleep $((try * 10))
  done
  [ -n "$cache" ] || die "cannot fetch Go"
  rm -rf "$go_dir"
  cp -a "$cache" "$go_dir"
  chmod -R a+rX "$go_dir"
  chmod a+x "$go_dir"/bin/* "$go_dir"/pkg/tool/*/* # a module archive carries no modes
  ln -sf "$go_dir/bin/go" "$go_dir/bin/gofmt" /usr/local/bin/
}

[ "$(id -u)" = 0 ] || die "run as root"
log=$(mktemp /tmp/compute-agent-apt.XXXXXX)
our_policy=
trap 'rm -f "$log" $our_policy' EXIT
case ${1:-} in
  tests) more=$test_packages ;;
  tempest) more=$tempest_packages ;;
  *) more= ;;
esac
if [ -n "$more" ]; then
  # shellcheck disable=SC2086 # a list of words
  install_missing $more
  exit
fi
# shellcheck disable=SC2086 # a list of words
install_missing $packages
id_range /etc/subuid
id_range /etc/subgid
if ! has_go; then install_go; fi # not "||", in which errors end nothing
