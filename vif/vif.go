// Package vif describes a virtual interface as Neutron bound it and what it
// takes to wire it on this host. Implementations: vif/bridge (Linux bridge,
// and the qbr of hybrid plug) and vif/ovs (Open vSwitch). The package imports
// neither of them; the agent hands them in.
package vif

import (
	"context"
	"errors"
)

// Errors that callers may test.
var (
	// ErrUnsupported: the vif_type or vnic_type cannot be wired by this agent.
	ErrUnsupported = errors.New("unsupported VIF type")
	// ErrNotBound: Neutron did not bind the port to this host (unbound, binding_failed).
	ErrNotBound = errors.New("port is not bound to this host")
)

// VIF is one entry of a network_info list, reduced to what plugging needs
// (nova/network/model.py:VIF).
type VIF struct {
	PortID      string         // Neutron port UUID; every device name derives from it
	InstanceID  string         // instance UUID
	MAC         string         // address inside the guest
	Type        string         // vif_type: "ovs", "bridge", …
	VNICType    string         // "normal" is the only one supported
	Devname     string         // host end, "tap" + first 11 of the port id
	Bridge      string         // br-int, brq…, tbr-…
	NetworkID   string         //
	MTU         int            // 0: 1500
	InterfaceID string         // ovs_interfaceid; empty: PortID
	Details     map[string]any // binding:vif_details
	// Bandwidth is the flavor's limits; a Neutron QoS policy on the port takes their place.
	Bandwidth Bandwidth
	// QoSPolicy: Neutron limits the port by itself.
	QoSPolicy bool `json:",omitempty"`
	// CreateBridge: network.meta.should_create_bridge of a Linux bridge network.
	CreateBridge bool
}

// Link is the pair of ends that a plug leaves: Host stays wired on the host,
// Peer waits in the host's network namespace, down, until the guest takes it.
type Link struct {
	Host string // e.g. tap1a2b3c4d-5e
	Peer string // e.g. tin1a2b3c4d-5e
	MAC  string
	MTU  int
}

// Plugger wires the host side of one family of VIF types.
//
// Plug makes it so: called twice it changes nothing that is right, and it repairs
// what is not (a stale OVS row, a lost veth, another MTU) without cutting a healthy
// data path. It returns with the host end wired and up and the peer end present;
// when the guest already holds the peer, Link.Peer is empty.
//
// Unplug removes everything Plug made; unplugging what was never plugged succeeds.
// Both respect ctx's deadline and touch nothing that is not recognisably ours.
type Plugger interface {
	Plug(ctx context.Context, v VIF) (Link, error)
	Unplug(ctx context.Context, v VIF) error
}

// HostName returns the host end's device name for a port ("tap" + 11 characters).
func HostName(portID string) string { return deviceName("tap", portID) }

// PeerName returns the name of the guest's end while it waits on the host.
func PeerName(portID string) string { return deviceName("tin", portID) }

const (
	// maxDeviceName is where os-vif cuts names (the kernel allows 15).
	maxDeviceName = 14
	// devicePrefix is how long the part is that tells the devices of a port apart, such as tap and qvo.
	devicePrefix = 3
)

func deviceName(prefix, portID string) string {
	name := prefix + portID
	if len(name) > maxDeviceName {
		name = name[:maxDeviceName]
	}
	return name
}
