package ovs

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/vif"
)

const markedInstance = "11111111-2222-4333-8444-000000000001"

func TestPlanMarked(t *testing.T) {
	t.Parallel()
	ids := map[string]string{"vm-uuid": markedInstance}
	marked := func(change func(st *portState)) portState {
		return present(func(st *portState) {
			st.ids = ids
			if change != nil {
				change(st)
			}
		})
	}
	unchanged := `{"columns":["external_ids"],"op":"wait","rows":[{"external_ids":["map",[["vm-uuid","` + markedInstance + `"]]]}],` +
		`"table":"Interface","timeout":0,"until":"==","where":[["_uuid","==",["uuid","` + ifaceID + `"]]]}`
	delTrunk := `{"mutations":[["bridges","delete",["uuid","` + intID + `"]]],"op":"mutate","table":"Open_vSwitch","where":[["_uuid","==",["uuid","` + rootID + `"]]]}`
	for _, tc := range []struct {
		name string
		st   portState
		want []string
	}{
		{name: "the instance's", st: marked(nil), want: []string{unchanged, delFromInt, delPort, delQoS}},
		{
			name: "a trunk's parent", st: marked(func(st *portState) { st.bridges[0].name = "tbr-1" }),
			want: []string{unchanged, delFromInt, delPort, delQoS, delTrunk},
		},
		{name: "another instance's by now", st: marked(func(st *portState) { st.ids = map[string]string{"vm-uuid": "another"} })},
		{name: "without mark", st: marked(func(st *portState) { st.ids = map[string]string{"iface-id": "port-1"} })},
		{name: "no device of the kernel", st: marked(func(st *portState) { st.ifaceTyp = "dpdkvhostuserclient" })},
		{name: "gone", st: absent(nil)},
		{name: "gone but for a QoS row, which has no mark", st: absent(func(st *portState) { st.qos = []string{qosRow} })},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.want, encode(t, planMarked(tc.st, markedInstance))); diff != "" {
				t.Errorf("operations (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMarkedRows: what bears no mark, or a text that is none, is nobody's.
func TestMarkedRows(t *testing.T) {
	t.Parallel()
	c := newConn(t, fakeServer(t, func(int) string {
		return `[{"rows":[
			{"name":"tap1","type":"","external_ids":["map",[["iface-id","port-1"],["vm-uuid","` + markedInstance + `"]]]},
			{"name":"vhu1","type":"dpdkvhostuserclient","external_ids":["map",[["vm-uuid","` + markedInstance + `"]]]},
			{"name":"tap2","type":"","external_ids":["map",[["iface-id","port-2"]]]},
			{"name":"tap3","type":"","external_ids":["map",[["vm-uuid","my machine"]]]},
			{"name":"br-int","type":"internal","external_ids":["map",[]]}]}]`
	}))
	var marked []vif.Marked
	require.NoError(t, c.do(t.Context(), func(ctx context.Context, s session) (err error) {
		marked, err = s.marked(ctx)
		return err
	}))
	require.Equal(t, []vif.Marked{{Instance: markedInstance, What: vif.MarkedOVSPort, Name: "tap1"}}, marked)
}

// TestAbsent: only where nobody listens, nor ever did, is there no Open vSwitch.
func TestAbsent(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/tmp", "ovs") //nolint:usetesting // see fakeServer
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	left := filepath.Join(dir, "left.sock") // by a server that was killed
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	refused := "unix:" + left
	missing := "unix:" + filepath.Join(dir, "db.sock")
	require.True(t, newConn(t, missing, refused).absent(t.Context()))
	require.False(t, newConn(t, "bogus:thing").absent(t.Context()), "a wrong option is an error")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.False(t, newConn(t, refused).absent(ended), "not known")

	there := newConn(t, missing, fakeServer(t, func(int) string { return oneRow }))
	require.False(t, there.absent(t.Context()))
	_, err = run(t.Context(), there)
	require.NoError(t, err)
	there.endpoints = []string{missing}
	require.False(t, there.absent(t.Context()), "it is away, and will be back")
}
