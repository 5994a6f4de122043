// Package bridge wires ports of ML2/linuxbridge networks: the host end of the
// pair becomes a port of the network's Linux bridge. Neutron's linuxbridge agent
// sees the tap device there, joins the bridge with the physical network and filters.
package bridge

import (
	"context"
	"fmt"

	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/link"
)

// Plugger implements vif.Plugger for vif.KindBridge (vif_plug_linux_bridge/linux_bridge.py).
// Bridges are shared with Neutron's agent: they are made when missing and never removed.
type Plugger struct {
	nl *link.Netlink
}

var _ vif.Plugger = (*Plugger)(nil)

// New returns a Plugger that works through nl.
func New(nl *link.Netlink) *Plugger { return &Plugger{nl: nl} }

// Plug implements vif.Plugger.
func (p *Plugger) Plug(ctx context.Context, v vif.VIF) (vif.Link, error) {
	name := v.LinuxBridge()
	if err := p.ensureBridge(ctx, name, v.CreateBridge); err != nil {
		return vif.Link{}, err
	}
	state, err := p.nl.EnsurePair(ctx, link.PairOf(v))
	if err != nil {
		return vif.Link{}, err
	}
	host := v.HostDevice()
	if err := p.nl.Enslave(ctx, host, name); err != nil {
		return vif.Link{}, err
	}
	if err := p.nl.Up(ctx, host); err != nil {
		return vif.Link{}, err
	}
	return link.Of(v, state), nil
}

func (p *Plugger) ensureBridge(ctx context.Context, name string, create bool) error {
	if !create {
		exists, err := p.nl.Exists(ctx, name)
		if err != nil {
			return err
		}
		if !exists {
			return fmt.Errorf("use bridge %s: it does not exist, and the network forbids making it", name)
		}
	}
	return p.nl.EnsureBridge(ctx, link.Bridge{Name: name})
}

// Unplug implements vif.Plugger.
func (p *Plugger) Unplug(ctx context.Context, v vif.VIF) error {
	return p.nl.RemovePair(ctx, v.HostDevice(), v.InstanceID)
}
