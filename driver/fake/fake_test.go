package fake_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/driver/drivertest"
	"github.com/compute-agent/compute-agent/driver/fake"
	"github.com/compute-agent/compute-agent/vif"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	ports := 0
	drivertest.Run(t, drivertest.Harness{
		New: func(*testing.T) driver.Driver {
			d := fake.New()
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
	})
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
