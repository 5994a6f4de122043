package ovs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/link"
)

const (
	datapathSystem = "system"
	datapathNetdev = "netdev"

	// deadVLAN is where Neutron's agent keeps ports that it has not wired (neutron
	// ovs_neutron_agent.py:DEAD_VLAN_TAG).
	deadVLAN = 4095

	// Keys of external_ids: ownerID is the one by which Neutron, OVN and we recognise a port.
	ownerID     = "iface-id"
	instanceKey = "vm-uuid"
)

// port is a wanted port of an OVS bridge.
type port struct {
	name     string // of the device
	bridge   string
	datapath string            // the bridge's datapath_type; "": leave it
	ids      map[string]string // external_ids of the interface
	fresh    bool              // the device is new: a row of its name is about a device that is gone
	qosType  string            // of new ports on the system datapath; "": none
	isolate  bool              // new ports start in the dead VLAN
	policing policing
}

// ensurePort makes the port so and waits until vswitchd has taken it in. It returns
// the bridge's datapath type. A port that is right is not touched: removing and adding
// it would cut the guest off until Neutron has wired it again.
func (c *conn) ensurePort(ctx context.Context, p port) (datapath string, err error) {
	err = c.do(ctx, func(ctx context.Context, s session) error {
		st, err := s.read(ctx, p.name)
		if err != nil {
			return err
		}
		if ops := p.planBridge(st); len(ops) > 0 {
			if _, err := s.transact(ctx, ops...); err != nil {
				return fmt.Errorf("make OVS bridge %s: %w", p.bridge, err)
			}
			if st, err = s.read(ctx, p.name); err != nil {
				return err
			}
		}
		if p.stale(st) {
			if err := p.checkOwner(st); err != nil {
				return err
			}
			if err := s.removeStale(ctx, p.name, st); err != nil {
				return err
			}
			if st, err = s.read(ctx, p.name); err != nil {
				return err
			}
		}
		ops, err := p.plan(st)
		if err != nil {
			return err
		}
		if p.superseded(st) {
			reqctx.Log(ctx).WithField("device", p.name).Info("the flavor's bandwidth limit gives way to somebody else's of the Open vSwitch port")
		}
		if len(ops) > 0 {
			if _, err := s.transact(ctx, ops...); err != nil {
				return fmt.Errorf("add OVS port %s to %s: %w", p.name, p.bridge, err)
			}
			p.fresh = false // a repetition finds the row that was just made
		}
		if b := st.bridge(p.bridge); b != nil {
			datapath = b.datapath
		}
		return s.waitOpened(ctx, p.name)
	})
	return datapath, err
}

// planBridge returns what makes the bridge, with the internal port of its name as
// ovs-vsctl add-br does, or what corrects its datapath type.
func (p port) planBridge(st portState) []ovsdb.Operation {
	b := st.bridge(p.bridge)
	if b != nil {
		if p.datapath == "" || sameDatapath(b.datapath, p.datapath) {
			return nil
		}
		return []ovsdb.Operation{{
			Op: ovsdb.OperationUpdate, Table: tableBridge, Where: byUUID(b.uuid),
			Row: ovsdb.Row{"datapath_type": p.datapath},
		}}
	}
	row := ovsdb.Row{"name": p.bridge, "ports": set(ref("brport"))}
	if p.datapath != "" {
		row["datapath_type"] = p.datapath
	}
	return []ovsdb.Operation{
		{Op: ovsdb.OperationInsert, Table: tableInterface, UUIDName: "briface", Row: ovsdb.Row{"name": p.bridge, "type": "internal"}},
		{Op: ovsdb.OperationInsert, Table: tablePort, UUIDName: "brport", Row: ovsdb.Row{"name": p.bridge, "interfaces": set(ref("briface"))}},
		{Op: ovsdb.OperationInsert, Table: tableBridge, UUIDName: "br", Row: row},
		mutate(tableRoot, st.root, "bridges", ovsdb.MutateOperationInsert, set(ref("br"))),
	}
}

func sameDatapath(a, b string) bool {
	return a == b || (isSystem(a) && isSystem(b))
}

func isSystem(datapath string) bool { return datapath == "" || datapath == datapathSystem }

// plan returns what makes the port so on an existing bridge; nothing if it is.
func (p port) plan(st portState) ([]ovsdb.Operation, error) {
	b := st.bridge(p.bridge)
	if b == nil {
		return nil, fmt.Errorf("find OVS bridge %s: %w", p.bridge, errConflict)
	}
	if err := p.checkOwner(st); err != nil {
		return nil, err
	}
	switch {
	case st.port == "":
		return append(p.guard(), p.insert(st, b)...), nil
	case p.stale(st):
		return nil, fmt.Errorf("replace OVS port %s: %w", p.name, errConflict)
	}
	var ops []ovsdb.Operation
	if owner := st.owner(); owner == nil || owner.uuid != b.uuid {
		if owner != nil {
			ops = append(ops, mutate(tableBridge, owner.uuid, "ports", ovsdb.MutateOperationDelete, set(ref(st.port))))
		}
		ops = append(ops, mutate(tableBridge, b.uuid, "ports", ovsdb.MutateOperationInsert, set(ref(st.port))))
	}
	if changed := p.changedIDs(st.ids); len(changed) > 0 {
		ops = append(ops,
			mutate(tableInterface, st.iface, "external_ids", ovsdb.MutateOperationDelete, keySet(changed)),
			mutate(tableInterface, st.iface, "external_ids", ovsdb.MutateOperationInsert, stringMap(changed)))
	}
	ops = append(ops, p.planPolicing(st)...)
	if len(ops) == 0 {
		return nil, nil
	}
	return append(p.guard(), ops...), nil
}

// stale tells whether there is a port of this name whose device is gone: the rows
// outlive a reboot of the host and the death of a guest, the device does not.
func (p port) stale(st portState) bool {
	return st.port != "" && (p.fresh || st.ofport < 0)
}

// removeStale removes a port and waits until vswitchd has let go of it. Seen with
// the userspace datapath: a port that is removed and added in one transaction
// keeps the socket of the device that is gone, and nothing passes.
func (s session) removeStale(ctx context.Context, name string, st portState) error {
	results, err := s.transact(ctx, append(removal(st),
		mutate(tableRoot, st.root, "next_cfg", ovsdb.MutateOperationAdd, 1),
		selectOp(tableRoot, byUUID(st.root), "next_cfg", "cur_cfg"))...)
	if err != nil {
		return fmt.Errorf("delete stale OVS port %s: %w", name, err)
	}
	rows := results[len(results)-1].Rows
	if len(rows) == 0 {
		return fmt.Errorf("delete stale OVS port %s: %w", name, errConflict)
	}
	want, current := intOf(rows[0]["next_cfg"]), intOf(rows[0]["cur_cfg"])
	for current < want {
		row, err := s.waitChange(ctx, tableRoot, byUUID(st.root), "cur_cfg", current)
		if err != nil {
			return fmt.Errorf("wait for vswitchd to delete stale port %s: %w", name, err)
		}
		current = intOf(row["cur_cfg"])
	}
	return nil
}

// guard makes the transaction fail if the bridge went away: without it the new rows
// would belong to nothing, and the server would drop them without an error.
func (p port) guard() []ovsdb.Operation {
	now := 0
	return []ovsdb.Operation{{
		Op: ovsdb.OperationWait, Table: tableBridge, Timeout: &now,
		Where:   []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, p.bridge)},
		Columns: []string{"name"}, Until: string(ovsdb.WaitConditionEqual), Rows: []ovsdb.Row{{"name": p.bridge}},
	}}
}

// checkOwner refuses rows that are about something else of the same name.
func (p port) checkOwner(st portState) error {
	if st.ifaceTyp != "" {
		return fmt.Errorf("use OVS interface %s of type %s: %w", p.name, st.ifaceTyp, link.ErrForeign)
	}
	if id := st.ids[ownerID]; id != "" && id != p.ids[ownerID] {
		return fmt.Errorf("use OVS interface %s: %w: it is of port %s", p.name, link.ErrForeign, id)
	}
	return nil
}

// insert adds the rows of a new port (vif_plug_ovs/ovsdb/ovsdb_lib.py:create_ovs_vif_port).
func (p port) insert(st portState, b *bridgeRow) []ovsdb.Operation {
	row := ovsdb.Row{"name": p.name, "interfaces": set(ref("iface"))}
	if p.isolate && !vif.IsTrunkBridge(p.bridge) {
		row["tag"], row["vlan_mode"], row["trunks"] = deadVLAN, "trunk", deadVLAN
	}
	iface, ids := ovsdb.Row{"name": p.name}, maps.Clone(p.ids)
	if p.policing.rate > 0 {
		ids[policingKey] = p.policing.mark()
		maps.Copy(iface, p.policing.columns())
	}
	iface["external_ids"] = stringMap(ids)
	ops := []ovsdb.Operation{{Op: ovsdb.OperationInsert, Table: tableInterface, UUIDName: "iface", Row: iface}}
	if p.qosType != "" && isSystem(b.datapath) {
		// Without a row vswitchd owns the qdisc of the device, and what it leaves there
		// costs most of the throughput on newer kernels (os-vif bug 2017868).
		ops = append(ops, deleteRows(tableQoS, st.qos)...)
		ops = append(ops, ovsdb.Operation{
			Op: ovsdb.OperationInsert, Table: tableQoS, UUIDName: "qos",
			Row: ovsdb.Row{"type": p.qosType, "external_ids": stringMap(map[string]string{"id": qosID(p.name), "_type": p.qosType})},
		})
		row["qos"] = set(ref("qos"))
	}
	return append(ops,
		ovsdb.Operation{Op: ovsdb.OperationInsert, Table: tablePort, UUIDName: "port", Row: row},
		mutate(tableBridge, b.uuid, "ports", ovsdb.MutateOperationInsert, set(ref("port"))))
}

// removal takes a port off its bridge and deletes it with the QoS rows that were made for it.
// The port's row is deleted too and not left to the server's garbage collection, which comes
// after the check that no row refers to the QoS row. Its interface goes by itself.
func removal(st portState) []ovsdb.Operation {
	var ops []ovsdb.Operation
	if b := st.owner(); b != nil {
		ops = append(ops, mutate(tableBridge, b.uuid, "ports", ovsdb.MutateOperationDelete, set(ref(st.port))))
	}
	if st.port != "" {
		ops = append(ops, deleteRows(tablePort, []string{st.port})...)
	}
	return append(ops, deleteRows(tableQoS, st.qos)...)
}

func deleteRows(table string, ids []string) []ovsdb.Operation {
	var ops []ovsdb.Operation
	for _, id := range ids {
		ops = append(ops, ovsdb.Operation{Op: ovsdb.OperationDelete, Table: table, Where: byUUID(id)})
	}
	return ops
}

func (p port) changedIDs(have map[string]string) map[string]string {
	changed := map[string]string{}
	for k, v := range p.ids {
		if have[k] != v {
			changed[k] = v
		}
	}
	return changed
}

func keySet(m map[string]string) ovsdb.OvsSet {
	keys := ovsdb.OvsSet{GoSet: []any{}}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		keys.GoSet = append(keys.GoSet, k)
	}
	return keys
}

// waitOpened waits until vswitchd has opened the device: only then do Neutron's
// agents see the port.
func (s session) waitOpened(ctx context.Context, name string) error {
	byName := []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, name)}
	last := any(set()) // not given yet
	for {
		row, err := s.waitChange(ctx, tableInterface, byName, "ofport", last, "error")
		fault := stringOf(row["error"])
		if err != nil {
			return fmt.Errorf("wait for OVS port %s: %w", name, withFault(err, fault))
		}
		ofport := intOf(row["ofport"])
		if ofport > 0 {
			return nil
		}
		last = ofport
	}
}

func withFault(err error, fault string) error {
	if fault == "" {
		return err
	}
	return fmt.Errorf("%s: %w", fault, err)
}

// waitChange waits until a column of one row differs from a value, and returns that
// column and others. The server does the waiting (RFC 7047 section 5.2.6), in slices that are
// shorter than a call's timeout. The row as it is comes with the error when ctx ends.
func (s session) waitChange(ctx context.Context, table string, where []ovsdb.Condition, column string, old any, others ...string) (ovsdb.Row, error) {
	columns := append([]string{column}, others...)
	for {
		slice := callTimeout / 2
		if deadline, ok := ctx.Deadline(); ok {
			slice = min(slice, time.Until(deadline))
		}
		ms := max(1, int(slice.Milliseconds()))
		results, err := s.transact(ctx, ovsdb.Operation{
			Op: ovsdb.OperationWait, Table: table, Timeout: &ms, Where: where, Columns: []string{column},
			Until: string(ovsdb.WaitConditionNotEqual), Rows: []ovsdb.Row{{column: old}},
		}, selectOp(table, where, columns...))
		switch {
		case err == nil && len(results[1].Rows) == 0:
			return nil, fmt.Errorf("%w: the row was removed", errConflict)
		case err == nil:
			return results[1].Rows[0], nil
		case isLost(err) || !isTimedOut(err):
			return nil, err
		case ctx.Err() != nil:
			return s.last(ctx, table, where, columns), ctx.Err()
		}
	}
}

// last reads a row for the text of an error, though ctx has ended.
func (s session) last(ctx context.Context, table string, where []ovsdb.Condition, columns []string) ovsdb.Row {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	results, err := s.transact(ctx, selectOp(table, where, columns...))
	if err != nil || len(results[0].Rows) == 0 {
		return nil
	}
	return results[0].Rows[0]
}

// deletePort removes a port with what was made for it, if it is ours, and the trunk
// bridge that it was on: that one lives as long as the parent port
// (vif_plug_ovs/ovs.py:_unplug_vif_generic).
func (c *conn) deletePort(ctx context.Context, name string, o owner, trunkBridge string) error {
	return c.do(ctx, func(ctx context.Context, s session) error {
		st, err := s.read(ctx, name)
		if err != nil {
			return err
		}
		ops := planDelete(st, o, trunkBridge)
		if len(ops) == 0 {
			return nil
		}
		if _, err := s.transact(ctx, ops...); err != nil {
			return fmt.Errorf("delete OVS port %s: %w", name, err)
		}
		return nil
	})
}

// owner is whom a port must belong to in order to be deleted: of another instance's
// row, a late unplug must keep its hands off.
type owner struct {
	interfaceID string
	instanceID  string
}

func (o owner) has(ids map[string]string) bool {
	other := func(have, want string) bool { return have != "" && want != "" && have != want }
	return !other(ids[ownerID], o.interfaceID) && !other(ids[instanceKey], o.instanceID)
}

func planDelete(st portState, o owner, trunkBridge string) []ovsdb.Operation {
	if st.port != "" && (st.ifaceTyp != "" || !o.has(st.ids)) {
		return nil
	}
	ops := removal(st)
	if b := st.bridge(trunkBridge); b != nil && vif.IsTrunkBridge(trunkBridge) {
		ops = append(ops, mutate(tableRoot, st.root, "bridges", ovsdb.MutateOperationDelete, set(ref(b.uuid))))
	}
	return ops
}
