#!/bin/bash
# Runs a command in a network and a mount namespace of its own, with a loopback and nothing else: a second control plane beside one
# that is up, without its ports, links, namespaces or firewall. There is no way out of it: install first.
#
#     tests/functional/isolated.sh make functional
set -eu
[ $# -gt 0 ] || { echo "usage: isolated.sh COMMAND..." >&2; exit 2; }
exec unshare --net --mount --fork bash -euc '
  ip link set lo up
  mkdir -p /run/netns
  mount -t tmpfs tmpfs /run/netns
  # A sysfs shows the links of the namespace that mounted it; the control groups stay those of the machine.
  groups=$(mktemp -d)
  mount --rbind /sys/fs/cgroup "$groups"
  mount -t sysfs sysfs /sys
  mount --rbind "$groups" /sys/fs/cgroup
  umount -R "$groups"
  rmdir "$groups"
  exec "$@"' isolated "$@"
