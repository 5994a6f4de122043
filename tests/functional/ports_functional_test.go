//go:build functional

package functional

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
)

func TestPortsAreBoundHere(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	ports, err := shared.Admin.Ports(within(t, 10*time.Second), "device_id="+server.ID)
	require.NoError(t, err)
	require.Len(t, ports, 1)
	require.Equal(t, shared.Host, ports[0].HostID)
	want := map[string]string{controlplane.LinuxBridge: "bridge", controlplane.OVS: "ovs"}
	require.Equal(t, want[shared.Plane.Net], ports[0].VIFType)
	eventually(t, 20*time.Second, "port ACTIVE", func(ctx context.Context) (bool, error) {
		ports, err := shared.Admin.Ports(ctx, "status=ACTIVE&device_id="+server.ID)
		return len(ports) == 1, err
	})
	remove(t, server.ID)
	ports, err = shared.Admin.Ports(within(t, 10*time.Second), "device_id="+server.ID)
	require.NoError(t, err)
	require.Empty(t, ports, "the agent's own port goes with the server")
}

func TestPortsOfTheTenantStay(t *testing.T) {
	ctx := within(t, time.Minute)
	var made struct{ Port struct{ ID string } }
	body := map[string]any{"port": map[string]any{"network_id": shared.Network, "name": "kept"}}
	require.NoError(t, shared.Admin.Do(ctx, http.MethodPost, cloud.Network, "/v2.0/ports", body, &made))
	path := "/v2.0/ports/" + made.Port.ID
	t.Cleanup(func() {
		require.NoError(t, shared.Admin.Do(context.Background(), http.MethodDelete, cloud.Network, path, nil, nil))
	})
	server := boot(t, cloud.NewServer{Networks: cloud.OnPort(made.Port.ID)})
	answers(t, server)
	remove(t, server.ID)
	ports, err := shared.Admin.Ports(ctx, "id="+made.Port.ID)
	require.NoError(t, err)
	require.Len(t, ports, 1)
	require.Empty(t, ports[0].DeviceID)
	require.Empty(t, ports[0].HostID)
}

// TestPortsThatNeutronForgets: a port was reported up while a provisioning block was still there, and nobody looks at
// it again when the block goes. Two reports at the same moment leave a port so, each seeing the other's block.
func TestPortsThatNeutronForgets(t *testing.T) {
	ctx := within(t, 2*time.Minute)
	var made struct{ Port struct{ ID string } }
	body := map[string]any{"port": map[string]any{"network_id": shared.Network, "name": "forgotten"}}
	require.NoError(t, shared.Admin.Do(ctx, http.MethodPost, cloud.Network, "/v2.0/ports", body, &made))
	port := made.Port.ID
	t.Cleanup(func() {
		require.NoError(t, shared.Admin.Do(context.Background(), http.MethodDelete, cloud.Network, "/v2.0/ports/"+port, nil, nil))
	})
	sql := func(statement string) string {
		t.Helper()
		rows, err := shared.Plane.SQL(ctx, "USE neutron; "+strings.ReplaceAll(statement, "$port", "(SELECT standard_attr_id FROM ports WHERE id='"+port+"')"))
		require.NoError(t, err)
		return strings.TrimSpace(rows)
	}
	sql("INSERT INTO provisioningblocks (standard_attr_id, entity) VALUES ($port, 'TEST')")
	id := create(t, cloud.NewServer{Networks: cloud.OnPort(port)})
	eventually(t, time.Minute, "port reported up", func(ctx context.Context) (bool, error) {
		ports, err := shared.Admin.Ports(ctx, "id="+port)
		bound := err == nil && len(ports) == 1 && ports[0].HostID == shared.Host
		return bound && sql("SELECT entity FROM provisioningblocks WHERE standard_attr_id = $port") == "TEST", err
	})
	sql("DELETE FROM provisioningblocks WHERE standard_attr_id = $port")
	server, err := shared.Admin.WaitStatus(ctx, id, "ACTIVE")
	require.NoError(t, err)
	answers(t, server)
}
