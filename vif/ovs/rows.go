package ovs

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// Tables of the Open_vSwitch database (vswitchd/vswitch.ovsschema) that plugging touches.
const (
	tableRoot      = "Open_vSwitch"
	tableBridge    = "Bridge"
	tablePort      = "Port"
	tableInterface = "Interface"
	tableQoS       = "QoS"
)

// qosNamespace is what os-vif derives the ids of QoS rows from
// (vif_plug_ovs/ovsdb/ovsdb_lib.py:QOS_UUID_NAMESPACE).
var qosNamespace = uuid.MustParse("68da264a-847f-42a8-8ab0-5e774aee3d95")

func qosID(device string) string { return uuid.NewSHA1(qosNamespace, []byte(device)).String() }

// bridgeRow is what is read of a bridge.
type bridgeRow struct {
	uuid     string
	name     string
	datapath string // "" means "system"
	ports    []string
}

// portState is what the database holds about one port name, read in one transaction.
type portState struct {
	root     string // the row of Open_vSwitch
	bridges  []bridgeRow
	port     string // uuid; "": no such port
	iface    string
	ids      map[string]string // external_ids of the interface
	ofport   int               // 0: not yet given; -1: the device could not be opened
	fault    string            // why
	qos      []string          // QoS rows made for this port name
	ifaceTyp string            // "": a device of the kernel
	policing policing
}

func (st portState) bridge(name string) *bridgeRow {
	for i := range st.bridges {
		if st.bridges[i].name == name {
			return &st.bridges[i]
		}
	}
	return nil
}

// owner returns the bridge that has the port.
func (st portState) owner() *bridgeRow {
	for i := range st.bridges {
		for _, p := range st.bridges[i].ports {
			if st.port != "" && p == st.port {
				return &st.bridges[i]
			}
		}
	}
	return nil
}

// read selects all that is known of a port name.
func (s session) read(ctx context.Context, name string) (portState, error) {
	byName := []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, name)}
	results, err := s.transact(ctx,
		selectOp(tableRoot, nil, "_uuid"),
		selectOp(tableBridge, nil, "_uuid", "name", "datapath_type", "ports"),
		selectOp(tablePort, byName, "_uuid"),
		selectOp(tableInterface, byName, "_uuid", "type", "external_ids", "ofport", "error", columnRate, columnBurst),
		selectOp(tableQoS, []ovsdb.Condition{ovsdb.NewCondition("external_ids", ovsdb.ConditionIncludes, stringMap(map[string]string{"id": qosID(name)}))}, "_uuid"),
	)
	if err != nil {
		return portState{}, fmt.Errorf("read OVS port %s: %w", name, err)
	}
	var st portState
	for _, row := range results[0].Rows {
		st.root = uuidOf(row["_uuid"])
	}
	for _, row := range results[1].Rows {
		b := bridgeRow{uuid: uuidOf(row["_uuid"]), name: stringOf(row["name"]), datapath: stringOf(row["datapath_type"])}
		for _, p := range elements(row["ports"]) {
			b.ports = append(b.ports, uuidOf(p))
		}
		st.bridges = append(st.bridges, b)
	}
	for _, row := range results[2].Rows {
		st.port = uuidOf(row["_uuid"])
	}
	for _, row := range results[3].Rows {
		st.iface, st.ifaceTyp, st.ids = uuidOf(row["_uuid"]), stringOf(row["type"]), mapOf(row["external_ids"])
		st.ofport, st.fault = intOf(row["ofport"]), stringOf(row["error"])
		st.policing = policing{intOf(row[columnRate]), intOf(row[columnBurst])}
	}
	for _, row := range results[4].Rows {
		st.qos = append(st.qos, uuidOf(row["_uuid"]))
	}
	return st, nil
}

func selectOp(table string, where []ovsdb.Condition, columns ...string) ovsdb.Operation {
	return ovsdb.Operation{Op: ovsdb.OperationSelect, Table: table, Where: where, Columns: columns}
}

// The database's notation (RFC 7047 section 5.1) writes a set of one element like the
// element itself, and an absent optional value as an empty set.

func elements(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case ovsdb.OvsSet:
		return v.GoSet
	}
	return []any{v}
}

func stringOf(v any) string {
	for _, e := range elements(v) {
		s, _ := e.(string)
		return s
	}
	return ""
}

func intOf(v any) int {
	for _, e := range elements(v) {
		f, _ := e.(float64) // JSON numbers
		return int(f)
	}
	return 0
}

func uuidOf(v any) string {
	u, _ := v.(ovsdb.UUID)
	return u.GoUUID
}

func mapOf(v any) map[string]string {
	out := map[string]string{}
	if m, ok := v.(ovsdb.OvsMap); ok {
		for k, e := range m.GoMap {
			out[stringOf(k)] = stringOf(e)
		}
	}
	return out
}

func ref(id string) ovsdb.UUID { return ovsdb.UUID{GoUUID: id} }

func set(values ...any) ovsdb.OvsSet { return ovsdb.OvsSet{GoSet: values} }

func stringMap(m map[string]string) ovsdb.OvsMap {
	out := make(map[any]any, len(m))
	for k, v := range m {
		out[k] = v
	}
	return ovsdb.OvsMap{GoMap: out}
}

func byUUID(id string) []ovsdb.Condition {
	return []ovsdb.Condition{ovsdb.NewCondition("_uuid", ovsdb.ConditionEqual, ref(id))}
}

// mutate changes one column of the row with an id.
func mutate(table, id, column string, how ovsdb.Mutator, value any) ovsdb.Operation {
	return ovsdb.Operation{
		Op: ovsdb.OperationMutate, Table: table, Where: byUUID(id),
		Mutations: []ovsdb.Mutation{*ovsdb.NewMutation(column, how, value)},
	}
}
