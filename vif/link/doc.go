// Package link makes the network devices that plugging needs: veth pairs, Linux
// bridges and what joins them. It is the only importer of the netlink library.
//
// Devices are made in the network namespace of the process. Everything may be
// repeated: a device that is right already is left alone.
package link
