// Package controlplane brings up a real OpenStack control plane from Debian packages: MariaDB, RabbitMQ, memcached, Keystone,
// Glance, Placement, Nova without nova-compute, Neutron with its L2, DHCP and metadata agents. Everything runs in a chroot below
// one directory, listens on the loopback only, and needs no systemd. The machine's Debian is 12; that of the chroot is the one that
// carries the release of OpenStack, Zed unless another one is asked for.
//
// The services share the host's network namespace, and the L2 agent runs under the host's own name: an agent on the host that
// plugs its interfaces into the bridges brq… or br-int finds the real thing.
//
// Install needs the network (apt); Up does not. Down undoes everything on the host that Up did: processes, mounts, links, network
// namespaces, firewall chains, kernel settings. What is below the directory stays until Remove.
package controlplane
