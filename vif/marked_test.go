package vif_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/vif"
)

const instanceID = "11111111-2222-4333-8444-000000000001"

// fakeFinder has links of one kind, and takes a second to remove one.
type fakeFinder struct {
	what    string
	names   []string
	err     error
	removed []string
	busy    int // how many removals run
	most    int
	mu      sync.Mutex // guards removed, busy and most
}

func (f *fakeFinder) Marked(context.Context) ([]vif.Marked, error) {
	var marked []vif.Marked
	for _, name := range f.names {
		marked = append(marked, vif.Marked{Instance: instanceID, What: f.what, Name: name})
	}
	return marked, f.err
}

func (f *fakeFinder) RemoveMarked(_ context.Context, m vif.Marked) error {
	if m.What != f.what {
		return nil
	}
	f.count(1)
	defer f.count(-1)
	time.Sleep(time.Second)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removed = append(f.removed, m.Name)
	return f.err
}

func (f *fakeFinder) count(by int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy += by
	f.most = max(f.most, f.busy)
}

func TestSetFinds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ports := &fakeFinder{what: vif.MarkedOVSPort, names: []string{"qvo1"}}
		devices := &fakeFinder{what: vif.MarkedDevice, names: []string{"tap1", "qvo1"}}
		s := vif.NewSet(nil).FindWith(ports, devices)
		marked, err := s.Marked(t.Context())
		require.NoError(t, err)
		require.Equal(t, []vif.Marked{
			{Instance: instanceID, What: vif.MarkedOVSPort, Name: "qvo1"},
			{Instance: instanceID, What: vif.MarkedDevice, Name: "tap1"},
			{Instance: instanceID, What: vif.MarkedDevice, Name: "qvo1"},
		}, marked)
		for _, m := range marked {
			require.NoError(t, s.RemoveMarked(t.Context(), m))
		}
		require.Equal(t, []string{"qvo1"}, ports.removed)
		require.Equal(t, []string{"tap1", "qvo1"}, devices.removed)

		ports.err = errors.New("boom")
		_, err = s.Marked(t.Context())
		require.ErrorIs(t, err, ports.err, "half a list would pass for all of it")
		require.ErrorIs(t, s.RemoveMarked(t.Context(), marked[0]), ports.err)

		marked, err = vif.NewSet(nil).Marked(t.Context())
		require.NoError(t, err)
		require.Empty(t, marked, "without finders nothing is found")
	})
}

// TestSetRemovesBetweenPlugs: a device is not removed while its port is plugged for another instance.
func TestSetRemovesBetweenPlugs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeFinder{what: vif.MarkedDevice}
		s := vif.NewSet(map[vif.Kind]vif.Plugger{vif.KindTap: &fake{}}).FindWith(f)
		v := port("tap")
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.Plug(t.Context(), v); err != nil {
				t.Error(err)
			}
		})
		for _, device := range v.Devices() {
			wg.Go(func() {
				if err := s.RemoveMarked(t.Context(), vif.Marked{Instance: instanceID, What: vif.MarkedDevice, Name: device}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.Len(t, f.removed, len(v.Devices()))
		require.Equal(t, 1, f.most)
		require.Equal(t, time.Duration(1+len(v.Devices()))*time.Second, time.Since(start))

		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		wg.Go(func() { _ = s.Unplug(t.Context(), v) })
		synctest.Wait()
		err := s.RemoveMarked(ctx, vif.Marked{Instance: instanceID, What: vif.MarkedDevice, Name: v.HostDevice()})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, s.RemoveMarked(t.Context(), vif.Marked{What: vif.MarkedDevice, Name: "lo"}), "shorter than a prefix")
		wg.Wait()
	})
}

func TestDevices(t *testing.T) {
	t.Parallel()
	require.Equal(t,
		[]string{"tap1a2b3c4d-5e", "tin1a2b3c4d-5e", "qvb1a2b3c4d-5e", "qvo1a2b3c4d-5e", "qbr1a2b3c4d-5e", "ifb1a2b3c4d-5e"},
		vif.VIF{PortID: portID}.Devices())
	require.Equal(t, "cali1", vif.VIF{PortID: portID, Devname: "cali1"}.Devices()[0])
}

func TestIsMark(t *testing.T) {
	t.Parallel()
	require.True(t, vif.IsMark(instanceID))
	for _, text := range []string{"", "uplink", instanceID[1:], "{" + instanceID + "}", "urn:uuid:" + instanceID, instanceID[:35] + "x"} {
		require.False(t, vif.IsMark(text), "%q", text)
	}
	m := vif.Marked{Instance: instanceID, What: vif.MarkedDevice, Name: "tap1"}
	require.Equal(t, "device tap1", m.String())
	m.InUse = true
	require.Equal(t, "device tap1 (in use)", m.String())
}
