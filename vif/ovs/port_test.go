package ovs

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/link"
)

// Row ids of the tests.
const (
	rootID  = "00000000-0000-4000-8000-000000000001"
	intID   = "00000000-0000-4000-8000-000000000002"
	otherID = "00000000-0000-4000-8000-000000000003"
	portRow = "00000000-0000-4000-8000-000000000004"
	ifaceID = "00000000-0000-4000-8000-000000000005"
	qosRow  = "00000000-0000-4000-8000-000000000006"
)

func wantedPort(change func(p *port)) port {
	p := port{
		name: "tap1", bridge: "br-int", qosType: DefaultQoSType,
		ids: map[string]string{"iface-id": "port-1", "iface-status": "active", "attached-mac": "fa:16:3e:00:00:01", "vm-uuid": "instance-1"},
	}
	if change != nil {
		change(&p)
	}
	return p
}

// present is a database in which wantedPort is right.
func present(change func(st *portState)) portState {
	st := portState{
		root:    rootID,
		bridges: []bridgeRow{{uuid: intID, name: "br-int", ports: []string{portRow}}, {uuid: otherID, name: "br-other"}},
		port:    portRow, iface: ifaceID, ofport: 5, qos: []string{qosRow},
		ids: wantedPort(nil).ids,
	}
	if change != nil {
		change(&st)
	}
	return st
}

func absent(change func(st *portState)) portState {
	st := portState{root: rootID, bridges: []bridgeRow{{uuid: intID, name: "br-int"}}, ids: map[string]string{}}
	if change != nil {
		change(&st)
	}
	return st
}

// encode renders operations as they go over the wire.
func encode(t *testing.T, ops []ovsdb.Operation) []string {
	t.Helper()
	var out []string
	for _, op := range ops {
		data, err := json.Marshal(op)
		require.NoError(t, err)
		var v any // sorts the keys
		require.NoError(t, json.Unmarshal(data, &v))
		data, err = json.Marshal(v)
		require.NoError(t, err)
		out = append(out, string(data))
	}
	return out
}

const (
	guardOp    = `{"columns":["name"],"op":"wait","rows":[{"name":"br-int"}],"table":"Bridge","timeout":0,"until":"==","where":[["name","==","br-int"]]}`
	addToInt   = `{"mutations":[["ports","insert",["named-uuid","port"]]],"op":"mutate","table":"Bridge","where":[["_uuid","==",["uuid","` + intID + `"]]]}`
	delFromInt = `{"mutations":[["ports","delete",["uuid","` + portRow + `"]]],"op":"mutate","table":"Bridge","where":[["_uuid","==",["uuid","` + intID + `"]]]}`
	delPort    = `{"op":"delete","table":"Port","where":[["_uuid","==",["uuid","` + portRow + `"]]]}`
	delQoS     = `{"op":"delete","table":"QoS","where":[["_uuid","==",["uuid","` + qosRow + `"]]]}`
)

const (
	markPolicing = `{"mutations":[["external_ids","insert",["map",[["compute-agent-policing","4000/8000"]]]]],"op":"mutate","table":"Interface",` +
		`"where":[["_uuid","==",["uuid","` + ifaceID + `"]]]}`
	unmarkPolicing = `{"mutations":[["external_ids","delete","compute-agent-policing"]],"op":"mutate","table":"Interface",` +
		`"where":[["_uuid","==",["uuid","` + ifaceID + `"]]]}`
)

func police(rate, burst int) string {
	return fmt.Sprintf(`{"op":"update","row":{"ingress_policing_burst":%d,"ingress_policing_rate":%d},"table":"Interface","where":[["_uuid","==",["uuid","%s"]]]}`,
		burst, rate, ifaceID)
}

func TestPolicingOf(t *testing.T) {
	t.Parallel()
	hybrid := map[string]any{"ovs_hybrid_plug": true}
	for _, c := range []struct {
		v    vif.VIF
		want policing
	}{
		{vif.VIF{Type: "ovs"}, policing{}},
		{vif.VIF{Type: "ovs", Bandwidth: vif.Bandwidth{In: vif.Rate{Average: 500}}}, policing{}},
		{vif.VIF{Type: "ovs", Bandwidth: vif.Bandwidth{Out: vif.Rate{Average: 500, Peak: 900}}}, policing{4000, 8000}},
		{vif.VIF{Type: "ovs", Bandwidth: vif.Bandwidth{Out: vif.Rate{Average: 500, Burst: 32}}}, policing{4000, 262}},
		{vif.VIF{Type: "ovs", Bandwidth: vif.Bandwidth{Out: vif.Rate{Average: 125_000}}}, policing{1_000_000, 800_000}},
		{vif.VIF{Type: "ovs", Details: hybrid, Bandwidth: vif.Bandwidth{Out: vif.Rate{Average: 500}}}, policing{}},
		{vif.VIF{Type: "bridge", Bandwidth: vif.Bandwidth{Out: vif.Rate{Average: 500}}}, policing{}},
	} {
		require.Equal(t, c.want, policingOf(c.v), "%+v", c.v)
	}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	oneID := func(p *port) { p.ids = map[string]string{"iface-id": "port-1"} }
	limit := func(p *port) { p.policing = policing{4000, 8000} }
	policed := func(mark string, now policing) func(*portState) {
		return func(st *portState) {
			if st.policing = now; mark != "" {
				st.ids[policingKey] = mark
			}
		}
	}
	insertIface := `{"op":"insert","row":{"external_ids":["map",[["iface-id","port-1"]]],"name":"tap1"},"table":"Interface","uuid-name":"iface"}`
	for _, tc := range []struct {
		name string
		p    port
		st   portState
		want []string
	}{
		{name: "right already", p: wantedPort(nil), st: present(nil)},
		{
			name: "others' ids stay", p: wantedPort(nil),
			st: present(func(st *portState) {
				st.ids = map[string]string{"ovn-installed": "true"}
				maps.Copy(st.ids, wantedPort(nil).ids)
			}),
		},
		{name: "not opened yet", p: wantedPort(nil), st: present(func(st *portState) { st.ofport = 0 })},
		{
			name: "new on the system datapath", p: wantedPort(oneID), st: absent(nil),
			want: []string{
				guardOp, insertIface,
				`{"op":"insert","row":{"external_ids":["map",[["_type","linux-noop"],["id","` + qosID("tap1") + `"]]],"type":"linux-noop"},"table":"QoS","uuid-name":"qos"}`,
				`{"op":"insert","row":{"interfaces":["named-uuid","iface"],"name":"tap1","qos":["named-uuid","qos"]},"table":"Port","uuid-name":"port"}`,
				addToInt,
			},
		},
		{
			name: "new on the userspace datapath", p: wantedPort(oneID), st: absent(func(st *portState) { st.bridges[0].datapath = "netdev" }),
			want: []string{
				guardOp, insertIface,
				`{"op":"insert","row":{"interfaces":["named-uuid","iface"],"name":"tap1"},"table":"Port","uuid-name":"port"}`,
				addToInt,
			},
		},
		{
			name: "isolated", p: wantedPort(func(p *port) { oneID(p); p.qosType, p.isolate = "", true }), st: absent(nil),
			want: []string{
				guardOp, insertIface,
				`{"op":"insert","row":{"interfaces":["named-uuid","iface"],"name":"tap1","tag":4095,"trunks":4095,"vlan_mode":"trunk"},"table":"Port","uuid-name":"port"}`,
				addToInt,
			},
		},
		{
			name: "a QoS row that was left", p: wantedPort(oneID), st: absent(func(st *portState) { st.qos = []string{qosRow} }),
			want: []string{
				guardOp, insertIface, delQoS,
				`{"op":"insert","row":{"external_ids":["map",[["_type","linux-noop"],["id","` + qosID("tap1") + `"]]],"type":"linux-noop"},"table":"QoS","uuid-name":"qos"}`,
				`{"op":"insert","row":{"interfaces":["named-uuid","iface"],"name":"tap1","qos":["named-uuid","qos"]},"table":"Port","uuid-name":"port"}`,
				addToInt,
			},
		},
		{
			name: "one id differs", p: wantedPort(nil), st: present(func(st *portState) {
				st.ids = map[string]string{"iface-id": "port-1", "iface-status": "active", "attached-mac": "fa:16:3e:00:00:01", "vm-uuid": "before"}
			}),
			want: []string{
				guardOp,
				`{"mutations":[["external_ids","delete","vm-uuid"]],"op":"mutate","table":"Interface","where":[["_uuid","==",["uuid","` + ifaceID + `"]]]}`,
				`{"mutations":[["external_ids","insert",["map",[["vm-uuid","instance-1"]]]]],"op":"mutate","table":"Interface","where":[["_uuid","==",["uuid","` + ifaceID + `"]]]}`,
			},
		},
		{
			name: "on another bridge", p: wantedPort(nil), st: present(func(st *portState) {
				st.bridges[0].ports, st.bridges[1].ports = nil, []string{portRow}
			}),
			want: []string{
				guardOp,
				`{"mutations":[["ports","delete",["uuid","` + portRow + `"]]],"op":"mutate","table":"Bridge","where":[["_uuid","==",["uuid","` + otherID + `"]]]}`,
				`{"mutations":[["ports","insert",["uuid","` + portRow + `"]]],"op":"mutate","table":"Bridge","where":[["_uuid","==",["uuid","` + intID + `"]]]}`,
			},
		},
		{
			name: "limited, new", p: wantedPort(func(p *port) { oneID(p); p.qosType, p.policing = "", policing{4000, 8000} }), st: absent(nil),
			want: []string{
				guardOp,
				`{"op":"insert","row":{"external_ids":["map",[["compute-agent-policing","4000/8000"],["iface-id","port-1"]]],"ingress_policing_burst":8000,` +
					`"ingress_policing_rate":4000,"name":"tap1"},"table":"Interface","uuid-name":"iface"}`,
				`{"op":"insert","row":{"interfaces":["named-uuid","iface"],"name":"tap1"},"table":"Port","uuid-name":"port"}`,
				addToInt,
			},
		},
		{name: "limited", p: wantedPort(limit), st: present(nil), want: []string{guardOp, police(4000, 8000), markPolicing}},
		{name: "limited already", p: wantedPort(limit), st: present(policed("4000/8000", policing{4000, 8000}))},
		{
			name: "another limit", p: wantedPort(limit), st: present(policed("800/8000", policing{800, 8000})),
			want: []string{guardOp, police(4000, 8000), unmarkPolicing, markPolicing},
		},
		{
			name: "a limit that somebody has taken away", p: wantedPort(limit), st: present(policed("4000/8000", policing{})),
			want: []string{guardOp, police(4000, 8000), unmarkPolicing, markPolicing},
		},
		{name: "somebody else's limit", p: wantedPort(limit), st: present(policed("", policing{100, 80}))},
		{name: "somebody else's limit, and none of ours", p: wantedPort(nil), st: present(policed("", policing{100, 80}))},
		{
			name: "no limit any more", p: wantedPort(nil), st: present(policed("4000/8000", policing{4000, 8000})),
			want: []string{guardOp, police(0, 0), unmarkPolicing},
		},
		{
			name: "somebody else's limit in place of ours", p: wantedPort(limit), st: present(policed("4000/8000", policing{100, 80})),
			want: []string{guardOp, unmarkPolicing},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			require.False(t, tc.p.stale(tc.st))
			ops, err := tc.p.plan(tc.st)
			require.NoError(t, err)
			got := encode(t, ops)
			sortMaps(got)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("operations (-want +got):\n%s", diff)
			}
		})
	}
}

// sortMaps brings the maps of two keys into order: Go's maps have none.
func sortMaps(ops []string) {
	for first, second := range map[string]string{
		`["_type","linux-noop"]`: `["id","` + qosID("tap1") + `"]`, `["compute-agent-policing","4000/8000"]`: `["iface-id","port-1"]`,
	} {
		for i := range ops {
			ops[i] = strings.ReplaceAll(ops[i], second+","+first, first+","+second)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	t.Parallel()
	for name, st := range map[string]portState{
		"other port":      present(func(st *portState) { st.ids = map[string]string{"iface-id": "port-2"} }),
		"patch interface": present(func(st *portState) { st.ifaceTyp = "patch" }),
	} {
		_, err := wantedPort(nil).plan(st)
		require.ErrorIs(t, err, link.ErrForeign, name)
		require.Empty(t, planDelete(st, owner{interfaceID: "port-1"}, ""), name)
	}
	_, err := wantedPort(nil).plan(portState{})
	require.ErrorIs(t, err, errConflict, "the bridge went away")
}

func TestStale(t *testing.T) {
	t.Parallel()
	fresh := wantedPort(func(p *port) { p.fresh = true })
	require.True(t, fresh.stale(present(nil)), "the row is about the device before")
	require.False(t, fresh.stale(absent(nil)))
	gone := present(func(st *portState) { st.ofport = -1 })
	require.True(t, wantedPort(nil).stale(gone))
	require.False(t, wantedPort(nil).stale(present(nil)))
	_, err := wantedPort(nil).plan(gone)
	require.ErrorIs(t, err, errConflict, "is removed first")
}

func TestPlanBridge(t *testing.T) {
	t.Parallel()
	update := func(to string) []string {
		return []string{`{"op":"update","row":{"datapath_type":"` + to + `"},"table":"Bridge","where":[["_uuid","==",["uuid","` + intID + `"]]]}`}
	}
	for _, tc := range []struct {
		have, want string
		ops        []string
	}{
		{"", "", nil},
		{"", "system", nil},
		{"system", "", nil},
		{"system", "system", nil},
		{"netdev", "", nil},
		{"netdev", "netdev", nil},
		{"", "netdev", update("netdev")},
		{"netdev", "system", update("system")},
	} {
		p := wantedPort(func(p *port) { p.datapath = tc.want })
		got := encode(t, p.planBridge(absent(func(st *portState) { st.bridges[0].datapath = tc.have })))
		require.Equal(t, tc.ops, got, "%q to %q", tc.have, tc.want)
	}
	got := encode(t, wantedPort(func(p *port) { p.datapath = "netdev" }).planBridge(portState{root: rootID}))
	want := []string{
		`{"op":"insert","row":{"name":"br-int","type":"internal"},"table":"Interface","uuid-name":"briface"}`,
		`{"op":"insert","row":{"interfaces":["named-uuid","briface"],"name":"br-int"},"table":"Port","uuid-name":"brport"}`,
		`{"op":"insert","row":{"datapath_type":"netdev","name":"br-int","ports":["named-uuid","brport"]},"table":"Bridge","uuid-name":"br"}`,
		`{"mutations":[["bridges","insert",["named-uuid","br"]]],"op":"mutate","table":"Open_vSwitch","where":[["_uuid","==",["uuid","` + rootID + `"]]]}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
}

func TestPlanDelete(t *testing.T) {
	t.Parallel()
	delTrunk := `{"mutations":[["bridges","delete",["uuid","` + otherID + `"]]],"op":"mutate","table":"Open_vSwitch","where":[["_uuid","==",["uuid","` + rootID + `"]]]}`
	mine := owner{interfaceID: "port-1", instanceID: "instance-1"}
	trunk := func(st *portState) { st.bridges[1].name = "tbr-1" }
	for _, tc := range []struct {
		name  string
		st    portState
		o     owner
		trunk string
		want  []string
	}{
		{name: "ours", st: present(nil), o: mine, want: []string{delFromInt, delPort, delQoS}},
		{name: "without ids", st: present(func(st *portState) { st.ids = nil }), o: mine, want: []string{delFromInt, delPort, delQoS}},
		{name: "another instance's", st: present(nil), o: owner{interfaceID: "port-1", instanceID: "instance-2"}},
		{name: "another port's", st: present(nil), o: owner{interfaceID: "port-2"}},
		{name: "unknown", st: absent(nil), o: mine},
		{name: "QoS row left", st: absent(func(st *portState) { st.qos = []string{qosRow} }), o: mine, want: []string{delQoS}},
		{name: "trunk", st: present(trunk), o: mine, trunk: "tbr-1", want: []string{delFromInt, delPort, delQoS, delTrunk}},
		{name: "trunk without port", st: absent(func(st *portState) {
			st.bridges = append(st.bridges, bridgeRow{uuid: otherID, name: "tbr-1"})
		}), o: mine, trunk: "tbr-1", want: []string{delTrunk}},
		{name: "never br-int", st: absent(nil), o: mine, trunk: "br-int"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.want, encode(t, planDelete(tc.st, tc.o, tc.trunk))); diff != "" {
				t.Errorf("operations (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPortOfVIF(t *testing.T) {
	t.Parallel()
	p := New(nil, Options{QoSType: DefaultQoSType})
	v := vif.VIF{PortID: "port-1", InstanceID: "i", MAC: "m", Bridge: "tbr-5", Details: map[string]any{"datapath_type": "netdev"}}
	got := p.port(v, "tap", true)
	want := port{
		name: "tap", bridge: "tbr-5", datapath: "netdev", fresh: true, qosType: DefaultQoSType,
		ids: map[string]string{"iface-id": "port-1", "iface-status": "active", "attached-mac": "m", "vm-uuid": "i", "bridge_name": "tbr-5"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(port{}, policing{})); diff != "" {
		t.Errorf("port (-want +got):\n%s", diff)
	}
	v.Bridge, v.InterfaceID = "br-int", "other"
	ids := p.port(v, "tap", true).ids
	require.Equal(t, "other", ids["iface-id"])
	require.NotContains(t, ids, "bridge_name")
}

// TestQoSID: os-vif must recognise our rows and we its: python
// uuid.uuid5(uuid.UUID("68da264a-847f-42a8-8ab0-5e774aee3d95"), "tap1a2b3c4d-5e").
func TestQoSID(t *testing.T) {
	t.Parallel()
	require.Equal(t, "41dc4882-c074-560a-b32f-7a5ad9c3837d", qosID("tap1a2b3c4d-5e"))
}

func TestNotation(t *testing.T) {
	t.Parallel()
	var row ovsdb.Row
	require.NoError(t, json.Unmarshal([]byte(`{
		"one": ["uuid","`+intID+`"], "many": ["set",[["uuid","`+intID+`"],["uuid","`+otherID+`"]]], "none": ["set",[]],
		"ofport": 7, "gone": -1, "map": ["map",[["a","b"]]], "text": "x"}`), &row))
	require.Len(t, elements(row["one"]), 1)
	require.Equal(t, intID, uuidOf(elements(row["one"])[0]))
	require.Equal(t, otherID, uuidOf(elements(row["many"])[1]))
	require.Empty(t, elements(row["none"]))
	require.Equal(t, 7, intOf(row["ofport"]))
	require.Equal(t, -1, intOf(row["gone"]))
	require.Zero(t, intOf(row["none"]))
	require.Empty(t, stringOf(row["none"]))
	require.Equal(t, "x", stringOf(row["text"]))
	require.Equal(t, map[string]string{"a": "b"}, mapOf(row["map"]))
	require.Empty(t, mapOf(row["missing"]))
}
