package vif_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/vif"
)

const portID = "1a2b3c4d-5e6f-4000-8000-000000000001"

func TestKind(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		v       vif.VIF
		want    vif.Kind
		wantErr error
		text    string
	}{
		{name: "bridge", v: vif.VIF{Type: "bridge", VNICType: "normal"}, want: vif.KindBridge},
		{name: "ovs", v: vif.VIF{Type: "ovs"}, want: vif.KindOVS},
		{name: "ovs hybrid", v: vif.VIF{Type: "ovs", Details: map[string]any{"ovs_hybrid_plug": true}}, want: vif.KindOVSHybrid},
		{name: "ovs not hybrid", v: vif.VIF{Type: "ovs", Details: map[string]any{"ovs_hybrid_plug": false}}, want: vif.KindOVS},
		{name: "create_tap is not followed", v: vif.VIF{Type: "ovs", Details: map[string]any{"ovs_create_tap": true}}, want: vif.KindOVS},
		{name: "tap", v: vif.VIF{Type: "tap"}, want: vif.KindTap},
		{name: "none", v: vif.VIF{}, wantErr: vif.ErrNotBound, text: `vif_type ""`},
		{name: "unbound", v: vif.VIF{Type: "unbound"}, wantErr: vif.ErrNotBound, text: "unbound"},
		{name: "binding failed", v: vif.VIF{Type: "binding_failed", VNICType: "direct"}, wantErr: vif.ErrNotBound, text: "binding_failed"},
		{name: "vhostuser", v: vif.VIF{Type: "vhostuser"}, wantErr: vif.ErrUnsupported, text: "vhostuser"},
		{name: "hw_veb", v: vif.VIF{Type: "hw_veb", VNICType: "direct"}, wantErr: vif.ErrUnsupported, text: "hw_veb"},
		{name: "offloaded", v: vif.VIF{Type: "ovs", VNICType: "direct"}, wantErr: vif.ErrUnsupported, text: `vnic_type "direct"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := tc.v.Kind()
			require.ErrorIs(t, err, tc.wantErr)
			require.Equal(t, tc.want, got)
			if tc.text != "" {
				require.ErrorContains(t, err, tc.text)
			}
		})
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	v := vif.VIF{PortID: portID, NetworkID: "6e6574ab-cdef-4000-8000-000000000001"}
	bridgeEnd, ovsEnd := vif.HybridPair(portID)
	for got, want := range map[string]string{
		v.HostDevice():                     "tap1a2b3c4d-5e",
		vif.PeerName(portID):               "tin1a2b3c4d-5e",
		vif.HybridBridge(portID):           "qbr1a2b3c4d-5e",
		bridgeEnd:                          "qvb1a2b3c4d-5e",
		ovsEnd:                             "qvo1a2b3c4d-5e",
		v.LinuxBridge():                    "brq6e6574ab-cd",
		vif.VIF{Bridge: "b"}.LinuxBridge(): "b",
		vif.VIF{Devname: "d"}.HostDevice(): "d",
		vif.HostName("short"):              "tapshort",
	} {
		require.Equal(t, want, got)
	}
	require.True(t, vif.IsTrunkBridge("tbr-1234"))
	require.False(t, vif.IsTrunkBridge("br-tbr-"))
}

// fake remembers what it was asked and how many calls ran at once.
type fake struct {
	mu      sync.Mutex // guards calls
	calls   []string
	running atomic.Int32
	most    atomic.Int32
	err     error
}

func (f *fake) note(what string, v vif.VIF) error {
	n := f.running.Add(1)
	defer f.running.Add(-1)
	for m := f.most.Load(); n > m && !f.most.CompareAndSwap(m, n); m = f.most.Load() {
	}
	time.Sleep(time.Second)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, what+" "+v.PortID)
	return f.err
}

func (f *fake) Plug(_ context.Context, v vif.VIF) (vif.Link, error) {
	return vif.Link{Host: v.HostDevice()}, f.note("plug", v)
}

func (f *fake) Unplug(_ context.Context, v vif.VIF) error { return f.note("unplug", v) }

func port(kind string) vif.VIF { return vif.VIF{PortID: portID, MAC: "fa:16:3e:00:00:01", Type: kind} }

func TestSetChooses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bridge, tap := &fake{}, &fake{}
		s := vif.NewSet(map[vif.Kind]vif.Plugger{vif.KindBridge: bridge, vif.KindTap: tap})

		l, err := s.Plug(t.Context(), port("bridge"))
		require.NoError(t, err)
		require.Equal(t, vif.Link{Host: "tap1a2b3c4d-5e"}, l)
		require.NoError(t, s.Unplug(t.Context(), port("bridge")))
		require.Equal(t, []string{"plug " + portID, "unplug " + portID}, bridge.calls)

		_, err = s.Plug(t.Context(), port("ovs"))
		require.ErrorIs(t, err, vif.ErrUnsupported)
		require.ErrorContains(t, err, "no plugger for ovs on this host")
		require.NoError(t, s.Unplug(t.Context(), port("ovs")), "what this host cannot plug is not plugged")

		_, err = s.Plug(t.Context(), port("binding_failed"))
		require.ErrorIs(t, err, vif.ErrNotBound)
		require.ErrorContains(t, err, "plug port "+portID)
		_, err = s.Plug(t.Context(), port("macvtap"))
		require.ErrorIs(t, err, vif.ErrUnsupported)
		require.Empty(t, tap.calls)

		for _, gone := range []string{"unbound", "binding_failed", "macvtap", ""} {
			require.NoError(t, s.Unplug(t.Context(), port(gone)))
		}
		require.Len(t, tap.calls, 4, "a pair may be left whatever the type is now")
	})
}

func TestSetRefusesWrongPorts(t *testing.T) {
	t.Parallel()
	s := vif.NewSet(map[vif.Kind]vif.Plugger{vif.KindTap: &fake{}})
	for text, change := range map[string]func(v *vif.VIF){
		"too short": func(v *vif.VIF) { v.PortID = "1234" },
		"no MAC":    func(v *vif.VIF) { v.MAC = "" },
		"MTU -1":    func(v *vif.VIF) { v.MTU = -1 },
	} {
		v := port("tap")
		change(&v)
		_, err := s.Plug(t.Context(), v)
		require.ErrorContains(t, err, text)
	}
}

func TestSetReportsErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("no space")
		s := vif.NewSet(map[vif.Kind]vif.Plugger{vif.KindTap: &fake{err: cause}})
		_, err := s.Plug(t.Context(), port("tap"))
		require.ErrorIs(t, err, cause)
		require.EqualError(t, err, "plug port "+portID+": no space")
		require.EqualError(t, s.Unplug(t.Context(), port("tap")), "unplug port "+portID+": no space")
	})
}

// TestSetLocksPerPort: one operation at a time per port, different ports together.
func TestSetLocksPerPort(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		s := vif.NewSet(map[vif.Kind]vif.Plugger{vif.KindTap: f})
		start := time.Now()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := s.Plug(t.Context(), port("tap")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.Equal(t, int32(1), f.most.Load())
		require.Equal(t, 3*time.Second, time.Since(start))

		start = time.Now()
		for _, id := range []string{"0000000a-0000-4", "0000000b-0000-4", "0000000c-0000-4"} {
			wg.Go(func() {
				v := port("tap")
				v.PortID = id
				if _, err := s.Plug(t.Context(), v); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.Equal(t, time.Second, time.Since(start))

		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		wg.Go(func() { _ = s.Unplug(t.Context(), port("tap")) })
		synctest.Wait()
		_, err := s.Plug(ctx, port("tap"))
		require.ErrorIs(t, err, context.DeadlineExceeded, "a waiter respects its deadline")
		wg.Wait()
	})
}
