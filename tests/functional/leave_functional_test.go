//go:build functional

package functional

import (
	"context"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// leaveTime is what a SIGTERM may take, whatever the agent waits for. It took less than a second; vif_plugging_timeout is 300 s and
// shutdown_timeout 60 s.
const leaveTime = 15 * time.Second

// leave ends the agent by SIGTERM, in little time and with status 0.
func leave(t *testing.T) {
	t.Helper()
	began := time.Now()
	require.NoError(t, shared.Agent.Signal(within(t, leaveTime), syscall.SIGTERM), "SIGTERM ends the agent with status 0")
	t.Logf("the agent ended after %.1f s", time.Since(began).Seconds())
}

// blockPort keeps a port of a name from becoming ACTIVE until release is called, as if no L2 agent ever wired it.
func blockPort(t *testing.T, name string) (port string, release func()) {
	t.Helper()
	ctx := within(t, 5*time.Minute)
	var made struct{ Port struct{ ID string } }
	body := map[string]any{"port": map[string]any{"network_id": shared.Network, "name": name}}
	require.NoError(t, shared.Admin.Do(ctx, http.MethodPost, cloud.Network, "/v2.0/ports", body, &made))
	t.Cleanup(func() {
		require.NoError(t, shared.Admin.Do(context.Background(), http.MethodDelete, cloud.Network, "/v2.0/ports/"+made.Port.ID, nil, nil))
	})
	sql := func(statement string) {
		t.Helper()
		_, err := shared.Plane.SQL(ctx, "USE neutron; "+strings.ReplaceAll(statement, "$port", "(SELECT standard_attr_id FROM ports WHERE id='"+made.Port.ID+"')"))
		require.NoError(t, err)
	}
	sql("INSERT INTO provisioningblocks (standard_attr_id, entity) VALUES ($port, 'TEST')")
	return made.Port.ID, func() { sql("DELETE FROM provisioningblocks WHERE standard_attr_id = $port AND entity = 'TEST'") }
}

// TestStopWhileWaitingForAPort: the agent's end does not wait for vif_plugging_timeout, and the next start finishes the build.
func TestStopWhileWaitingForAPort(t *testing.T) {
	port, release := blockPort(t, "never-up")
	id := create(t, cloud.NewServer{Networks: cloud.OnPort(port)})
	eventually(t, time.Minute, "the build to wait for its port", func(ctx context.Context) (bool, error) {
		ports, err := shared.Admin.Ports(ctx, "id="+port)
		if err != nil || len(ports) != 1 || ports[0].HostID != shared.Host {
			return false, err
		}
		server, err := shared.Admin.Server(ctx, id)
		return server.TaskState == "spawning", err
	})
	time.Sleep(2 * time.Second) // for whatever is not a wait
	leave(t)
	server, err := shared.Admin.Server(within(t, 20*time.Second), id)
	require.NoError(t, err)
	require.Equal(t, "BUILD", server.Status)
	require.Nil(t, server.Fault)
	require.Empty(t, leftovers(t, shared, id), "half a build does not stay on the host")

	release()
	startAgent(t)
	server, err = shared.Admin.WaitStatus(within(t, 2*time.Minute), id, "ACTIVE")
	require.NoError(t, err)
	answers(t, server)
	require.Equal(t, []actionEvent{{"compute__do_build_and_run_instance", "Success", shared.Host}}, lastAction(t, id, "create"))
}

// TestStopWhileAGuestHalts: nor does it wait for a guest that takes its time to halt; the next start asks it again.
func TestStopWhileAGuestHalts(t *testing.T) {
	server := boot(t, cloud.NewServer{Networks: "none"})
	pid := guestPID(t, server.ID)
	require.NoError(t, unix.Kill(pid, unix.SIGSTOP), "an init that is stopped does not halt")
	require.NoError(t, shared.Admin.Action(within(t, time.Minute), server.ID, "os-stop", nil, nil))
	eventually(t, 30*time.Second, "the agent to ask the guest", func(ctx context.Context) (bool, error) {
		now, err := shared.Admin.Server(ctx, server.ID)
		return now.TaskState == "powering-off", err
	})
	time.Sleep(2 * time.Second) // the message has arrived
	leave(t)
	require.NoError(t, unix.Kill(pid, unix.SIGCONT), "the guest outlives the agent")
	startAgent(t)
	statusIn(t, 90*time.Second, server.ID, "SHUTOFF")
	requireAction(t, server.ID, "stop", "compute_stop_instance")
}
