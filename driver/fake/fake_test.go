package fake_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/driver/drivertest"
	"github.com/compute-agent/compute-agent/driver/fake"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/vif"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	drivertest.Run(t, harness(func(*testing.T) *fake.Driver { return fake.New() }))
}

// TestConformanceWithDatabase: an agent's guests are there again when it is.
func TestConformanceWithDatabase(t *testing.T) {
	databases := map[driver.Driver]*state.DB{}
	open := func(t *testing.T, db *state.DB) *fake.Driver {
		d, err := fake.Open(db)
		require.NoError(t, err)
		databases[d] = db
		return d
	}
	h := harness(func(t *testing.T) *fake.Driver {
		db, err := state.Open(filepath.Join(t.TempDir(), "agent.db"))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, db.Close()) })
		return open(t, db)
	})
	h.Reopen = func(t *testing.T, d driver.Driver) driver.Driver { return open(t, databases[d]) }
	drivertest.Run(t, h)
}

func harness(open func(t *testing.T) *fake.Driver) drivertest.Harness {
	ports := 0
	return drivertest.Harness{
		New: func(t *testing.T) driver.Driver {
			d := open(t)
			d.ExecFunc = shell
			return d
		},
		Spec: func(_ *testing.T, n int) (driver.Spec, string) {
			return driver.Spec{UUID: fmt.Sprintf("uuid-%d", n), Name: fmt.Sprintf("instance-%d", n)}, "/rootfs"
		},
		Started: func(_ *testing.T, d driver.Driver, uuid string) {
			d.(*fake.Driver).WriteConsole(uuid, drivertest.BootLine+"\n")
		},
		PowerOff: func(_ *testing.T, d driver.Driver, uuid string) {
			d.(*fake.Driver).SetState(uuid, driver.PowerStateShutdown)
		},
		Deafen: func(_ *testing.T, d driver.Driver, uuid string) { d.(*fake.Driver).SetDeaf(uuid, true) },
		NIC: func(_ *testing.T, name string) driver.NIC {
			ports++
			return driver.NIC{PortID: fmt.Sprintf("port-%d", ports), Name: name, Link: vif.Link{Peer: fmt.Sprintf("tin%d", ports)}}
		},
		Unplug: func(*testing.T, driver.Driver, string, driver.NIC) {},
		Interfaces: func(_ *testing.T, d driver.Driver, uuid string) []string {
			i, _ := d.(*fake.Driver).Instance(uuid)
			var names []string
			for _, nic := range i.NICs {
				names = append(names, nic.Name)
			}
			return names
		},
	}
}

func TestReopened(t *testing.T) {
	t.Parallel()
	db, err := state.Open(filepath.Join(t.TempDir(), "agent.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	d, err := fake.Open(db)
	require.NoError(t, err)
	spec := driver.Spec{UUID: "u", Name: "instance-1", Limits: flavor.Limits{MemoryBytes: 1 << 20}}
	require.NoError(t, d.Create(t.Context(), spec, "/r"))
	require.NoError(t, d.Start(t.Context(), "u", []driver.NIC{{PortID: "p", Name: "eth0"}}))
	console, err := d.ConsoleLog(t.Context(), "u", 1<<10)
	require.NoError(t, err)
	require.Contains(t, string(console), "fake driver of compute-agent: instance-1 is started, and nothing runs")
	_, err = d.OpenRoot(t.Context(), "u")
	require.ErrorIs(t, err, driver.ErrUnsupported)
	require.NoError(t, d.Create(t.Context(), driver.Spec{UUID: "gone", Name: "instance-2"}, "/r"))
	require.NoError(t, d.Destroy(t.Context(), "gone"))
	require.Empty(t, d.Calls(), "an agent runs for long")

	before, _ := d.Instance("u")
	d, err = fake.Open(db)
	require.NoError(t, err)
	after, ok := d.Instance("u")
	require.True(t, ok)
	require.Empty(t, cmp.Diff(before, after, cmpopts.IgnoreFields(fake.Instance{}, "Console"), cmpopts.IgnoreUnexported(fake.Instance{})))
	_, ok = d.Instance("gone")
	require.False(t, ok)
	require.NoError(t, d.Create(t.Context(), driver.Spec{UUID: "v", Name: "instance-3"}, "/r"))
	require.NoError(t, d.Start(t.Context(), "v", nil))
	other, _ := d.Instance("v")
	require.NotEqual(t, after.InitPID, other.InitPID)
}

// TestConsoleIsBounded: a reader that is behind misses what is gone.
func TestConsoleIsBounded(t *testing.T) {
	t.Parallel()
	d := fake.New()
	require.NoError(t, d.Create(t.Context(), driver.Spec{UUID: "u", Name: "n"}, "/r"))
	require.NoError(t, d.Start(t.Context(), "u", nil))
	c, err := d.OpenConsole(t.Context(), "u")
	require.NoError(t, err)
	line := strings.Repeat("x", 1023) + "\n"
	for range 300 {
		d.WriteConsole("u", line)
	}
	kept, err := d.ConsoleLog(t.Context(), "u", 1<<30)
	require.NoError(t, err)
	require.Len(t, kept, 128<<10)
	got := make([]byte, 1<<20)
	n, err := c.Read(got)
	require.NoError(t, err)
	require.Equal(t, string(kept), string(got[:n]))
	require.NoError(t, c.Close())
}

// shell knows the commands of the suite.
func shell(_ context.Context, _ string, c driver.Command) (int, error) {
	switch strings.Join(c.Args, " ") {
	case "sh -c exit 3":
		return 3, nil
	case "cat":
		_, err := io.Copy(c.Stdout, c.Stdin)
		return 0, err
	case "sh -c echo $COLOUR >&2":
		_, err := fmt.Fprintln(c.Stderr, strings.TrimPrefix(c.Env[0], "COLOUR="))
		return 0, err
	}
	return 127, nil
}

func TestFail(t *testing.T) {
	t.Parallel()
	d, boom := fake.New(), errors.New("boom")
	spec := driver.Spec{UUID: "u", Name: "n"}
	d.Fail("Create", "", boom)
	d.Fail("Start", "u", boom)
	require.ErrorIs(t, d.Create(t.Context(), spec, "/r"), boom)
	require.NoError(t, d.Create(t.Context(), spec, "/r"))
	require.ErrorIs(t, d.Start(t.Context(), "u", nil), boom)
	require.NoError(t, d.Start(t.Context(), "u", []driver.NIC{{Name: "eth0"}}))
	i, ok := d.Instance("u")
	require.True(t, ok)
	require.Equal(t, "eth0", i.NICs[0].Name)
	require.Equal(t, "u n running nics=1\n", d.String())
	require.Equal(t, []string{"Create u", "Create u", "Start u", "Start u"}, d.Calls())
}
