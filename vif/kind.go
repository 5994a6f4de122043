package vif

import (
	"cmp"
	"fmt"
	"strings"
)

// Kind is a way of wiring; it follows from vif_type and vif_details.
type Kind string

// Kinds that this agent knows.
const (
	KindBridge    Kind = "bridge"     // Linux bridge (ML2/linuxbridge, up to 2024.2)
	KindOVS       Kind = "ovs"        // the host end is itself the port of an OVS bridge
	KindOVSHybrid Kind = "ovs-hybrid" // a Linux bridge per port between guest and OVS, for iptables_hybrid
	KindTap       Kind = "tap"        // a pair and nothing else; the backend routes to it (e.g. Calico)
)

// Kind tells how v is wired, from what Neutron's binding says. The error wraps
// ErrNotBound (nova/network/os_vif_util.py:nova_to_osvif_vif refuses the same) or
// ErrUnsupported, and names the type.
func (v VIF) Kind() (Kind, error) {
	switch v.Type {
	case "", "unbound", "binding_failed":
		return "", fmt.Errorf("%w: vif_type %q", ErrNotBound, v.Type)
	}
	if v.VNICType != "" && v.VNICType != "normal" {
		return "", fmt.Errorf("%w: vnic_type %q of vif_type %q", ErrUnsupported, v.VNICType, v.Type)
	}
	switch v.Type {
	case "bridge":
		return KindBridge, nil
	case "tap":
		return KindTap, nil
	case "ovs":
		if v.hybridPlug() {
			return KindOVSHybrid, nil
		}
		return KindOVS, nil
	}
	return "", fmt.Errorf("%w: vif_type %q", ErrUnsupported, v.Type)
}

func (v VIF) hybridPlug() bool {
	hybrid, _ := v.Details["ovs_hybrid_plug"].(bool)
	return hybrid
}

// DatapathType returns vif_details' datapath_type of the OVS bridge: "system",
// "netdev", or "" if Neutron did not say.
func (v VIF) DatapathType() string {
	t, _ := v.Details["datapath_type"].(string)
	return t
}

// HostDevice returns the name of the host end: what Neutron announced, or the
// name that it derives from the port.
func (v VIF) HostDevice() string { return cmp.Or(v.Devname, HostName(v.PortID)) }

// LinuxBridge returns the name of the Linux bridge of a KindBridge port: the
// network's, or the one that the linuxbridge agent derives from the network id
// (neutron/plugins/ml2/drivers/linuxbridge: brq + 11 characters).
func (v VIF) LinuxBridge() string {
	return cmp.Or(v.Bridge, deviceName("brq", v.NetworkID))
}

// IsTrunkBridge tells whether an OVS bridge belongs to one trunk port; Neutron
// tests the same prefix (neutron_lib constants TRUNK_BR_PREFIX).
func IsTrunkBridge(bridge string) bool { return strings.HasPrefix(bridge, "tbr-") }

// Names of the devices of hybrid plug (vif_plug_ovs/ovs.py:get_bridge_name, get_veth_pair_names).

// HybridBridge returns the name of a port's own Linux bridge.
func HybridBridge(portID string) string { return deviceName("qbr", portID) }

// HybridPair returns the pair between a port's own Linux bridge and OVS: the end
// in the Linux bridge and the end in OVS.
func HybridPair(portID string) (bridgeEnd, ovsEnd string) {
	return deviceName("qvb", portID), deviceName("qvo", portID)
}
