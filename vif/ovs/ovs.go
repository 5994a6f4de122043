// Package ovs wires ports of Open vSwitch networks (ML2/OVS and OVN): the host end
// of the pair, or with hybrid plug a patch behind a Linux bridge of the port's own,
// becomes a port of br-int that carries the Neutron port's ids. OVS is told through
// its database protocol; nothing is executed.
package ovs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/link"
)

// Options are the settings of [os_vif_ovs] and [neutron] that plugging follows.
type Options struct {
	Endpoints []string      // see Endpoints
	Bridge    string        // [neutron] ovs_bridge, for VIFs that name none; "": br-int
	Timeout   time.Duration // ovs_vsctl_timeout, the bound of one plug or unplug; 0: 120 s
	MTU       int           // network_device_mtu, for networks without one; 0: 1500
	QoSType   string        // default_qos_type of new ports on the system datapath; "": no QoS row
	Isolate   bool          // isolate_vif
}

// deviceGrace is what an unplug whose time is used up by OVSDB may take for the devices.
const deviceGrace = 5 * time.Second

// DefaultQoSType tells vswitchd to leave the qdisc of the device alone.
const DefaultQoSType = "linux-noop"

// Plugger implements vif.Plugger for vif.KindOVS and vif.KindOVSHybrid.
// The caller serialises the operations of one port, as vif.Set does.
type Plugger struct {
	nl *link.Netlink
	db *conn
	o  Options
}

var _ vif.Plugger = (*Plugger)(nil)

// New returns a Plugger. It connects to OVSDB when it first has to do something there.
func New(nl *link.Netlink, o Options) *Plugger {
	if len(o.Endpoints) == 0 {
		o.Endpoints = Endpoints("")
	}
	o.Bridge = cmp.Or(o.Bridge, "br-int")
	o.Timeout = cmp.Or(o.Timeout, 120*time.Second)
	o.MTU = cmp.Or(o.MTU, link.DefaultMTU)
	return &Plugger{nl: nl, db: &conn{endpoints: o.Endpoints}, o: o}
}

// Close ends the connection to OVSDB.
func (p *Plugger) Close() { p.db.close() }

// Plug implements vif.Plugger.
func (p *Plugger) Plug(ctx context.Context, v vif.VIF) (vif.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel()
	kind, err := v.Kind()
	if err != nil {
		return vif.Link{}, err
	}
	v.MTU = cmp.Or(v.MTU, p.o.MTU)
	v.Bridge = cmp.Or(v.Bridge, p.o.Bridge)

	state, err := p.nl.EnsurePair(ctx, link.PairOf(v))
	if err != nil {
		return vif.Link{}, err
	}
	device, fresh := v.HostDevice(), state.Created
	if kind == vif.KindOVSHybrid {
		device, fresh, err = p.ensureHybrid(ctx, v)
	} else {
		err = p.leaveHybrid(ctx, v)
	}
	if err != nil {
		return vif.Link{}, err
	}
	if err := p.nl.Up(ctx, v.HostDevice()); err != nil {
		return vif.Link{}, err
	}
	datapath, err := p.db.ensurePort(ctx, p.port(v, device, fresh))
	if err != nil {
		return vif.Link{}, err
	}
	if datapath == datapathNetdev && state.PeerHere {
		if err := link.DisableTXChecksum(vif.PeerName(v.PortID)); err != nil {
			return vif.Link{}, err
		}
	}
	return link.Of(v, state), nil
}

// port is the OVS port that a VIF wants on a device.
func (p *Plugger) port(v vif.VIF, device string, fresh bool) port {
	ids := map[string]string{
		ownerID:        interfaceID(v),
		"iface-status": "active",
		"attached-mac": v.MAC,
		instanceKey:    v.InstanceID,
	}
	if vif.IsTrunkBridge(v.Bridge) {
		ids["bridge_name"] = v.Bridge // lets Neutron's agent clean up
	}
	return port{
		name: device, bridge: v.Bridge, datapath: v.DatapathType(), ids: ids, fresh: fresh,
		qosType: p.o.QoSType, isolate: p.o.Isolate, policing: policingOf(v),
	}
}

func interfaceID(v vif.VIF) string { return cmp.Or(v.InterfaceID, v.PortID) }

// Unplug implements vif.Plugger. It removes what either way of plugging makes,
// because the way of a port may have changed since it was plugged. Devices go even
// if OVSDB cannot be reached; the error then says that rows are left.
func (p *Plugger) Unplug(ctx context.Context, v vif.VIF) error {
	ctx, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel()
	mine, err := p.nl.Mine(ctx, v.HostDevice(), v.InstanceID)
	if err != nil || !mine {
		return err
	}
	_, ovsEnd := vif.HybridPair(v.PortID)
	trunk := ""
	if vif.IsTrunkBridge(v.Bridge) {
		trunk = v.Bridge
	}
	rows := errors.Join(
		p.db.deletePort(ctx, ovsEnd, ownerOf(v), ""),
		p.db.deletePort(ctx, v.HostDevice(), ownerOf(v), trunk),
	)
	if ctx.Err() != nil { // the rows used up the time
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), deviceGrace)
		defer cancel()
	}
	return errors.Join(rows,
		p.nl.RemovePair(ctx, ovsEnd, v.InstanceID),
		p.nl.RemoveBridge(ctx, vif.HybridBridge(v.PortID)),
		p.nl.RemovePair(ctx, v.HostDevice(), v.InstanceID),
	)
}

func ownerOf(v vif.VIF) owner {
	return owner{interfaceID: interfaceID(v), instanceID: v.InstanceID}
}

// ensureHybrid makes the port's own Linux bridge, joins it with OVS by a patch and
// puts the host end into it (vif_plug_ovs/ovs.py:_plug_bridge). It returns the device
// that becomes the OVS port.
func (p *Plugger) ensureHybrid(ctx context.Context, v vif.VIF) (device string, fresh bool, err error) {
	bridge := vif.HybridBridge(v.PortID)
	bridgeEnd, ovsEnd := vif.HybridPair(v.PortID)
	if err := p.nl.EnsureBridge(ctx, link.Bridge{Name: bridge, NoAgeing: true, Alias: v.InstanceID}); err != nil {
		return "", false, err
	}
	fresh, err = p.nl.EnsurePatch(ctx, bridgeEnd, ovsEnd, v.MTU, v.InstanceID)
	if err != nil {
		return "", false, err
	}
	// A port that was plugged plainly before: OVS would hold the device that the bridge needs.
	if err := p.db.deletePort(ctx, v.HostDevice(), owner{interfaceID: interfaceID(v)}, ""); err != nil {
		return "", false, err
	}
	for _, device := range []string{bridgeEnd, v.HostDevice()} {
		if err := p.nl.Enslave(ctx, device, bridge); err != nil {
			return "", false, err
		}
	}
	return ovsEnd, fresh, nil
}

// leaveHybrid takes away what is left of a hybrid plug before a plain one.
func (p *Plugger) leaveHybrid(ctx context.Context, v vif.VIF) error {
	bridge := vif.HybridBridge(v.PortID)
	exists, err := p.nl.Exists(ctx, bridge)
	if err != nil || !exists {
		return err
	}
	_, ovsEnd := vif.HybridPair(v.PortID)
	if err := p.db.deletePort(ctx, ovsEnd, owner{interfaceID: interfaceID(v)}, ""); err != nil {
		return err
	}
	if err := errors.Join(p.nl.RemoveBridge(ctx, bridge), p.nl.RemovePair(ctx, ovsEnd, "")); err != nil {
		return fmt.Errorf("leave hybrid plug: %w", err)
	}
	return nil
}
