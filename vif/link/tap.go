package link

import (
	"cmp"
	"context"

	"github.com/compute-agent/compute-agent/vif"
)

// DefaultMTU is used where Neutron gives none ([os_vif_ovs] network_device_mtu).
const DefaultMTU = 1500

// Tap wires nothing but the pair, for backends that take the host end by its name
// (vif_type tap, e.g. Calico). It also serves to remove the pairs of ports whose type is gone.
type Tap struct {
	nl *Netlink
}

var _ vif.Plugger = (*Tap)(nil)

// NewTap returns a plugger for vif.KindTap.
func NewTap(nl *Netlink) *Tap { return &Tap{nl: nl} }

// Plug implements vif.Plugger.
func (t *Tap) Plug(ctx context.Context, v vif.VIF) (vif.Link, error) {
	state, err := t.nl.EnsurePair(ctx, PairOf(v))
	if err != nil {
		return vif.Link{}, err
	}
	if err := t.nl.Up(ctx, v.HostDevice()); err != nil {
		return vif.Link{}, err
	}
	return Of(v, state), nil
}

// Unplug implements vif.Plugger.
func (t *Tap) Unplug(ctx context.Context, v vif.VIF) error {
	return t.nl.RemovePair(ctx, v.HostDevice(), v.InstanceID)
}

// PairOf returns the pair that a VIF wants.
func PairOf(v vif.VIF) Pair {
	return Pair{
		Host:  v.HostDevice(),
		Peer:  vif.PeerName(v.PortID),
		MAC:   v.MAC,
		MTU:   cmp.Or(v.MTU, DefaultMTU),
		Alias: v.InstanceID,
	}
}

// Of returns what a plug hands to the driver.
func Of(v vif.VIF, state PairState) vif.Link {
	p := PairOf(v)
	l := vif.Link{Host: p.Host, MAC: p.MAC, MTU: p.MTU}
	if state.PeerHere {
		l.Peer = p.Peer
	}
	return l
}
