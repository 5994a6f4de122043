package ovs

import (
	"cmp"
	"strconv"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/compute-agent/compute-agent/vif"
)

// policing bounds what a guest sends, by dropping the rest. On its ports vswitchd keeps the ingress queue for that and removes any other
// (lib/netdev-linux.c:netdev_linux_set_policing), so that nothing can be queued there as on a Linux bridge; libvirt leaves it to vswitchd, too
// (src/util/virnetdevopenvswitch.c:virNetDevOpenvswitchInterfaceSetQos).
type policing struct {
	rate  int // kbit/s, 0: no bound
	burst int // kbit
}

const (
	// policingKey is the external id that holds what we have set: what is there else is a QoS policy, by Neutron's agent.
	policingKey = "compute-agent-policing"

	columnRate, columnBurst = "ingress_policing_rate", "ingress_policing_burst"

	// leastBurst is vswitchd's own default.
	leastBurst = 8000
)

// policingOf is the flavor's bound of a port. Behind hybrid plug the device is in a Linux bridge, where it is queued.
func policingOf(v vif.VIF) policing {
	kind, err := v.Kind()
	if r := v.Bandwidth.Out; err == nil && kind == vif.KindOVS && r.Average > 0 {
		rate := int(r.Average) * 8
		// TCP reaches a rate only with a burst of most of a second of it; Neutron's policies have as much
		// (neutron_lib/services/qos/constants.py:DEFAULT_BURST_RATE).
		return policing{rate, cmp.Or(int(r.Burst)*1024*8/1000, max(leastBurst, rate/5*4))}
	}
	return policing{}
}

func (p policing) mark() string { return strconv.Itoa(p.rate) + "/" + strconv.Itoa(p.burst) }

func (p policing) columns() ovsdb.Row { return ovsdb.Row{columnRate: p.rate, columnBurst: p.burst} }

// superseded tells that somebody else bounds what the guest sends.
func (p port) superseded(st portState) bool {
	return p.policing.rate > 0 && st.policing.rate > 0 && st.ids[policingKey] != st.policing.mark()
}

// planPolicing sets the bound of an existing port, or takes ours away. Somebody else's stays.
func (p port) planPolicing(st portState) []ovsdb.Operation {
	mark := st.ids[policingKey]
	ours := mark == st.policing.mark()
	wanted := p.policing.rate > 0 && !p.superseded(st)
	if wanted && ours && st.policing == p.policing || !wanted && mark == "" {
		return nil
	}
	var ops []ovsdb.Operation
	if wanted || ours {
		columns := policing{}.columns()
		if wanted {
			columns = p.policing.columns()
		}
		ops = append(ops, ovsdb.Operation{Op: ovsdb.OperationUpdate, Table: tableInterface, Where: byUUID(st.iface), Row: columns})
	}
	if mark != "" {
		ops = append(ops, mutate(tableInterface, st.iface, "external_ids", ovsdb.MutateOperationDelete, set(policingKey)))
	}
	if wanted {
		ops = append(ops, mutate(tableInterface, st.iface, "external_ids", ovsdb.MutateOperationInsert, stringMap(map[string]string{policingKey: p.policing.mark()})))
	}
	return ops
}
