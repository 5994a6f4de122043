package ovs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/link"
)

var _ vif.Finder = (*Plugger)(nil)

// Marked implements vif.Finder for ports of Open vSwitch; their devices are a link.Finder's. A port is in use unless its device is
// gone or bears the mark of the same instance: a guest of nova-compute may have a device that bears none.
func (p *Plugger) Marked(ctx context.Context) ([]vif.Marked, error) {
	ctx, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel()
	if p.db.absent(ctx) {
		reqctx.Log(ctx).Debug("no Open vSwitch runs on this host; its ports are not looked for")
		return nil, nil
	}
	var marked []vif.Marked
	err := p.db.do(ctx, func(ctx context.Context, s session) (err error) {
		marked, err = s.marked(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list OVS interfaces: %w", err)
	}
	if len(marked) == 0 {
		return nil, nil
	}
	// After the rows: a row comes after its device and goes before it.
	devices, err := p.nl.Devices(ctx)
	if err != nil {
		return nil, err
	}
	byName := make(map[string]link.Device, len(devices))
	for _, d := range devices {
		byName[d.Name] = d
	}
	for i := range marked {
		m := &marked[i]
		d, there := byName[m.Name]
		m.InUse = there && !d.FreeFor(m.Instance)
	}
	return marked, nil
}

// RemoveMarked implements vif.Finder. A trunk bridge goes with its parent port, as in Unplug.
func (p *Plugger) RemoveMarked(ctx context.Context, m vif.Marked) error {
	if m.What != vif.MarkedOVSPort || m.Instance == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel()
	return p.db.do(ctx, func(ctx context.Context, s session) error {
		st, err := s.read(ctx, m.Name)
		if err != nil {
			return err
		}
		ops := planMarked(st, m.Instance)
		if len(ops) == 0 {
			return nil
		}
		d, there, err := p.nl.Device(ctx, m.Name)
		if err != nil {
			return err
		}
		if there && !d.FreeFor(m.Instance) {
			return fmt.Errorf("delete OVS port %s: %w", m.Name, vif.ErrInUse)
		}
		if _, err := s.transact(ctx, ops...); err != nil {
			return fmt.Errorf("delete OVS port %s: %w", m.Name, err)
		}
		return nil
	})
}

// marked lists the interfaces that bear the mark of an instance and are devices of the kernel: no others are made here.
func (s session) marked(ctx context.Context) ([]vif.Marked, error) {
	results, err := s.transact(ctx, selectOp(tableInterface, nil, "name", "type", "external_ids"))
	if err != nil {
		return nil, err
	}
	var marked []vif.Marked
	for _, row := range results[0].Rows {
		instance := mapOf(row["external_ids"])[instanceKey]
		if stringOf(row["type"]) == "" && vif.IsMark(instance) {
			marked = append(marked, vif.Marked{Instance: instance, What: vif.MarkedOVSPort, Name: stringOf(row["name"])})
		}
	}
	return marked, nil
}

// planMarked deletes a port, with what was made for it, on the condition that its interface is as it was read.
func planMarked(st portState, instanceID string) []ovsdb.Operation {
	if st.port == "" || st.ids[instanceKey] != instanceID {
		return nil
	}
	trunk := ""
	if b := st.owner(); b != nil && vif.IsTrunkBridge(b.name) {
		trunk = b.name
	}
	ops := planDelete(st, owner{instanceID: instanceID}, trunk)
	if len(ops) == 0 {
		return nil
	}
	now := 0
	return append([]ovsdb.Operation{{
		Op: ovsdb.OperationWait, Table: tableInterface, Timeout: &now, Where: byUUID(st.iface),
		Columns: []string{"external_ids"}, Until: string(ovsdb.WaitConditionEqual), Rows: []ovsdb.Row{{"external_ids": stringMap(st.ids)}},
	}}, ops...)
}

// dialTimeout bounds the question whether anybody listens.
const dialTimeout = 2 * time.Second

// absent tells that nobody listens at any endpoint, and never has since the agent started: the host has no Open vSwitch.
func (c *conn) absent(ctx context.Context) bool {
	c.mu.Lock()
	reached := c.reached
	c.mu.Unlock()
	if reached {
		return false
	}
	for _, endpoint := range c.endpoints {
		network, address, _ := strings.Cut(endpoint, ":")
		if network == "ssl" {
			network = "tcp"
		}
		there, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, address)
		if err == nil {
			_ = there.Close()
			return false
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return false
		}
	}
	return true
}
