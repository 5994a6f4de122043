package drivertest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
)

// changer returns a driver that can change interfaces, or skips the test.
func changer(t *testing.T, h Harness) (driver.Driver, driver.NICChanger) {
	t.Helper()
	d := h.New(t)
	c, ok := d.(driver.NICChanger)
	if !ok || h.NIC == nil {
		t.Skip("the implementation cannot change interfaces of guests that run")
	}
	return d, c
}

func testNICs(t *testing.T, h Harness) {
	d, c := changer(t, h)
	ctx := t.Context()
	require.ErrorIs(t, c.AttachNIC(ctx, "nobody", driver.NIC{}), driver.ErrNotFound)
	require.ErrorIs(t, c.DetachNIC(ctx, "nobody", "p"), driver.ErrNotFound)
	uuid := h.create(t, d, 1)
	nics := []driver.NIC{h.NIC(t, "eth0"), h.NIC(t, "eth1"), h.NIC(t, "eth2")}
	require.ErrorIs(t, c.AttachNIC(ctx, uuid, nics[0]), driver.ErrNotRunning)
	require.ErrorIs(t, c.DetachNIC(ctx, uuid, nics[0].PortID), driver.ErrNotRunning)

	require.NoError(t, d.Start(ctx, uuid, nics[:1]))
	require.Equal(t, []string{"eth0"}, h.Interfaces(t, d, uuid))
	require.NoError(t, c.AttachNIC(ctx, uuid, nics[1]))
	require.Equal(t, []string{"eth0", "eth1"}, h.Interfaces(t, d, uuid))
	held := nics[1]
	held.Link.Peer = ""
	require.NoError(t, c.AttachNIC(ctx, uuid, held), "one that the guest has")

	require.NoError(t, d.Pause(ctx, uuid))
	require.NoError(t, c.AttachNIC(ctx, uuid, nics[2]), "to a paused guest")
	require.NoError(t, d.Unpause(ctx, uuid))
	require.Equal(t, []string{"eth0", "eth1", "eth2"}, h.Interfaces(t, d, uuid))
	taken := h.NIC(t, "eth2")
	require.Error(t, c.AttachNIC(ctx, uuid, taken), "a name that the guest uses")
	h.Unplug(t, d, uuid, taken)

	for _, nic := range nics[:2] { // one of the start, and one that came later
		require.NoError(t, c.DetachNIC(ctx, uuid, nic.PortID))
		h.Unplug(t, d, uuid, nic)
	}
	require.NoError(t, c.DetachNIC(ctx, uuid, nics[0].PortID), "repeated")
	require.Equal(t, []string{"eth2"}, h.Interfaces(t, d, uuid))
	require.NoError(t, d.Stop(ctx, uuid, 0, 0))
	again := h.NIC(t, "eth5")
	require.NoError(t, d.Start(ctx, uuid, []driver.NIC{again}))
	require.Equal(t, []string{"eth5"}, h.Interfaces(t, d, uuid))
}

// testRebootWithNICs: a guest whose interfaces changed is down after a reboot of its own, and
// tells that it is to be started.
func testRebootWithNICs(t *testing.T, h Harness) {
	d, c := changer(t, h)
	if h.Reboot == nil {
		t.Skip("the implementation has no guests that reboot")
	}
	ctx := t.Context()
	uuid := h.create(t, d, 1)
	for _, name := range []string{"attach", "detach"} {
		nic := h.NIC(t, "eth0")
		h.startWith(t, d, uuid, nic)
		events := d.Events(ctx)
		if name == "attach" {
			require.NoError(t, c.AttachNIC(ctx, uuid, h.NIC(t, "eth1")))
		} else {
			require.NoError(t, c.DetachNIC(ctx, uuid, nic.PortID))
			h.Unplug(t, d, uuid, nic)
		}
		h.Reboot(t, d, uuid)
		expect(t, events, uuid, driver.PowerStateShutdown)
		require.True(t, h.state(t, d, uuid, driver.PowerStateShutdown).Rebooting, name)
		h.startWith(t, d, uuid, h.NIC(t, "eth0"))
		require.False(t, h.state(t, d, uuid, driver.PowerStateRunning).Rebooting, name)
		h.PowerOff(t, d, uuid)
		require.Eventually(t, func() bool {
			info, err := d.Info(ctx, uuid)
			return err == nil && info == driver.Info{PowerState: driver.PowerStateShutdown}
		}, bootWithin, 10*time.Millisecond, name)
	}
}
