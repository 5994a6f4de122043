//go:build functional

package functional

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
	"github.com/compute-agent/compute-agent/tests/functional/host"
	"github.com/compute-agent/compute-agent/tests/functional/lab"
)

// slower is how many times as long something may take as is enough on a machine that does nothing else. Every wait ends when what it
// waits for is there, so it costs nothing where all is well.
const slower = 3

// within is a context with a deadline, of a slow machine; every wait of a test has one.
func within(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), slower*limit)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until check is true, and says how long that took.
func eventually(t *testing.T, limit time.Duration, what string, check func(ctx context.Context) (bool, error)) time.Duration {
	t.Helper()
	began := time.Now()
	ctx := within(t, limit)
	require.NoError(t, cloud.Poll(ctx, 100*time.Millisecond, what, func() (bool, error) { return check(ctx) }))
	took := time.Since(began)
	t.Logf("%s: %.1f s", what, took.Seconds())
	return took
}

// create asks for a server on this host's agent and has it deleted when the test ends. Zero fields mean the small image, the small
// flavor, the common network.
func create(t *testing.T, want cloud.NewServer) string {
	t.Helper()
	if want.Name == "" {
		want.Name = strings.ReplaceAll(strings.ToLower(t.Name()), "/", "-")
	}
	if want.Image == "" {
		want.Image = shared.Busybox
	}
	if want.Flavor == "" {
		want.Flavor = shared.Nano
	}
	if want.Networks == nil {
		want.Networks = cloud.OnNetwork(shared.Network)
	}
	want.AvailabilityZone = "nova:" + shared.Host // there may be a peer
	id, err := shared.Admin.CreateServer(within(t, time.Minute), want)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		if t.Failed() {
			explain(ctx, t, id)
		}
		require.NoError(t, shared.Admin.DeleteServer(ctx, id))
		require.NoError(t, shared.Admin.WaitGone(ctx, id))
	})
	return id
}

// explain shows what the agent and neutron logged about a server and its ports: nothing is left to look at when a run on a fresh machine has
// failed.
func explain(ctx context.Context, t *testing.T, id string) {
	t.Helper()
	const lines, width = 60, 400
	show := func(file, about string) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Logf("no log: %v", err)
			return
		}
		var found []string
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, about) {
				found = append(found, strings.TrimSpace(line[:min(len(line), width)]))
			}
		}
		t.Logf("%s about %s:\n%s", filepath.Base(file), about, strings.Join(found[max(0, len(found)-lines):], "\n"))
	}
	show(shared.Agent.LogFile(), id)
	ports, err := shared.Admin.Ports(ctx, "device_id="+id)
	if err != nil {
		t.Logf("no ports: %v", err)
	}
	for _, port := range ports {
		t.Logf("port %+v", port)
		for _, service := range []string{"neutron-server", "neutron-l2-agent", "nova-api"} {
			show(shared.Plane.LogFile(service), port.ID)
		}
	}
}

// boot creates a server and waits until it is ACTIVE.
func boot(t *testing.T, want cloud.NewServer) cloud.Server {
	t.Helper()
	began := time.Now()
	id := create(t, want)
	server, err := shared.Admin.WaitStatus(within(t, 2*time.Minute), id, "ACTIVE")
	require.NoError(t, err)
	t.Logf("ACTIVE after %.1f s", time.Since(began).Seconds())
	return server
}

// remove deletes a server and waits until nova and the agent are done with it.
func remove(t *testing.T, id string) {
	t.Helper()
	ctx := within(t, time.Minute)
	require.NoError(t, shared.Admin.DeleteServer(ctx, id))
	require.NoError(t, shared.Admin.WaitGone(ctx, id))
}

// serversHere are servers on this host by the beginning of their names, and those that no host took.
func serversHere(ctx context.Context, prefix string) ([]cloud.Server, error) {
	servers, err := shared.Admin.Servers(ctx, prefix)
	return slices.DeleteFunc(servers, func(s cloud.Server) bool { return s.Host != shared.Host && (s.Host != "" || s.Status != "ERROR") }), err
}

// deleteNamed removes servers by the beginning of their names, which the test cannot know by their ids: it is a clean-up.
func deleteNamed(t *testing.T, prefix string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), slower*2*time.Minute)
	defer cancel()
	servers, err := serversHere(ctx, prefix)
	require.NoError(t, err)
	for _, server := range servers {
		if t.Failed() && (len(servers) == 1 || server.Status != "ACTIVE") {
			explain(ctx, t, server.ID)
		}
		require.NoError(t, shared.Admin.DeleteServer(ctx, server.ID))
	}
	for _, server := range servers {
		require.NoError(t, shared.Admin.WaitGone(ctx, server.ID))
	}
}

// act makes a server action and waits for the status that it leads to.
func act(t *testing.T, id, action string, args any, status string) time.Duration {
	t.Helper()
	ctx := within(t, time.Minute)
	began := time.Now()
	require.NoError(t, shared.Admin.Action(ctx, id, action, args, nil))
	_, err := shared.Admin.WaitStatus(ctx, id, status)
	require.NoError(t, err)
	took := time.Since(began)
	t.Logf("%s: %.1f s", action, took.Seconds())
	return took
}

// upload makes an image of a file, and has it deleted when the test ends.
func upload(t *testing.T, file, diskFormat string, properties map[string]any) string {
	t.Helper()
	data, err := os.Open(file)
	require.NoError(t, err)
	defer data.Close()
	return uploadFrom(t, data, diskFormat, properties)
}

// uploadImage makes an image of what is said to be a root file system.
func uploadImage(t *testing.T, data []byte) string {
	t.Helper()
	return uploadFrom(t, bytes.NewReader(data), "raw", nil)
}

func uploadFrom(t *testing.T, data io.Reader, diskFormat string, properties map[string]any) string {
	t.Helper()
	id, err := tryUpload(t, data, diskFormat, properties)
	require.NoError(t, err)
	return id
}

// tryUpload is uploadFrom for what Glance may refuse.
func tryUpload(t *testing.T, data io.Reader, diskFormat string, properties map[string]any) (string, error) {
	t.Helper()
	name := shared.Host + "-" + strings.ReplaceAll(strings.ToLower(t.Name()), "/", "-")
	id, err := shared.Admin.UploadImage(within(t, 2*time.Minute), name, diskFormat, properties, data)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		if id != "" {
			require.NoError(t, shared.Admin.DeleteImage(ctx, id))
		}
	})
	return id, err
}

// answers waits until the server answers to ping at its address.
func answers(t *testing.T, server cloud.Server) {
	t.Helper()
	require.NotEmpty(t, server.IP(), "the server has no address")
	eventually(t, 30*time.Second, "answer to ping", func(ctx context.Context) (bool, error) {
		return host.Ping(ctx, shared.Netns(), server.IP()) == nil, nil
	})
}

// serves waits until the guest's web server takes connections: a guest answers to ping before it starts that.
func serves(t *testing.T, server cloud.Server) {
	t.Helper()
	eventually(t, 30*time.Second, "connection to port 80", func(ctx context.Context) (bool, error) {
		script := "exec 3<>/dev/tcp/" + server.IP() + "/80"
		return exec.CommandContext(ctx, "ip", "netns", "exec", shared.Netns(), "timeout", "2", "bash", "-c", script).Run() == nil, nil
	})
}

// httpGet reads the server's page at port 80 over TCP.
func httpGet(t *testing.T, server cloud.Server) string {
	t.Helper()
	serves(t, server)
	script := `exec 3<>/dev/tcp/` + server.IP() + `/80; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3`
	out, err := exec.CommandContext(within(t, 10*time.Second), "ip", "netns", "exec", shared.Netns(), "bash", "-c", script).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// inside runs a command in the guest.
func inside(t *testing.T, id string, command ...string) string {
	t.Helper()
	out, err := shared.Agent.Exec(within(t, 30*time.Second), id, command...)
	require.NoError(t, err)
	return strings.TrimSpace(out)
}

// shutDown runs reboot or poweroff in the guest, whose init may end the command, as everything else, before it has returned.
func shutDown(t *testing.T, id string, command ...string) {
	t.Helper()
	_, err := shared.Agent.Exec(within(t, 30*time.Second), id, command...)
	if err != nil {
		require.Regexp(t, "exit status (137|143)", err.Error())
	}
}

// booted is a value that is another one after each boot of the guest.
func booted(t *testing.T, id string) string {
	t.Helper()
	// The start time of the guest's init, in clock ticks of the host.
	fields := strings.Fields(inside(t, id, "cat", "/proc/1/stat"))
	require.Greater(t, len(fields), 21)
	return fields[21]
}

// snapshot is what there is on the host now.
func snapshot(t *testing.T) host.Snapshot {
	t.Helper()
	var ovs func(context.Context) ([]string, error)
	if shared.Plane.Net == controlplane.OVS {
		ovs = func(ctx context.Context) ([]string, error) {
			out, err := shared.Plane.OVS(ctx, "--format=csv", "--no-heading", "--columns=name", "list", "Port")
			return strings.Fields(out), err
		}
	}
	s, err := host.Take(within(t, 30*time.Second), shared.Agent.StateDir(), ovs)
	require.NoError(t, err)
	return s
}

// nothingLeft waits until the host is as it was. Neutron's agents take a moment to notice that a server is gone.
func nothingLeft(t *testing.T, before host.Snapshot) {
	t.Helper()
	var changes []string
	deadline := time.Now().Add(slower * 20 * time.Second)
	for {
		changes = snapshot(t).Since(before)
		if len(changes) == 0 {
			return
		}
		if time.Now().After(deadline) {
			require.Fail(t, "the host is not as it was", strings.Join(changes, "\n"))
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// noAllocations checks that placement holds nothing for the server.
func noAllocations(t *testing.T, id string) {
	t.Helper()
	ctx := within(t, 20*time.Second)
	provider, _, err := shared.Admin.Provider(ctx, shared.Host)
	require.NoError(t, err)
	err = cloud.Poll(ctx, 300*time.Millisecond, "allocations to go", func() (bool, error) {
		allocations, err := shared.Admin.Allocations(ctx, provider)
		_, held := allocations[id]
		return !held, err
	})
	require.NoError(t, err)
}

// startAgent starts the agent and waits until the scheduler may choose its host.
func startAgent(t *testing.T) {
	t.Helper()
	require.NoError(t, shared.Agent.Start())
	require.NoError(t, shared.Agent.WaitServing(within(t, time.Minute)))
	reports := reportCount(t)
	eventually(t, 30*time.Second, "the agent to report", func(ctx context.Context) (bool, error) {
		return reportCount(t) > reports, shared.Plane.WaitCompute(ctx, shared.Host)
	})
}

// withOptions starts a host's agent anew with more of a configuration, sections and all, until the test ends.
func withOptions(t *testing.T, l *lab.Lab, options string) {
	t.Helper()
	before := l.AgentOptions
	t.Cleanup(func() { restartWith(t, l, before) }) // also if it does not start with them
	restartWith(t, l, before+"\n"+options)
}

// restartWith starts a host's agent anew with other AgentOptions.
func restartWith(t *testing.T, l *lab.Lab, options string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute) // not the test's: it is a clean-up, too
	defer cancel()
	require.NoError(t, l.Agent.Signal(ctx, syscall.SIGTERM))
	l.AgentOptions = options
	require.NoError(t, l.StartAgent(ctx))
}

// killAgent ends the agent without a warning.
func killAgent(t *testing.T) {
	t.Helper()
	err := shared.Agent.Signal(within(t, 10*time.Second), syscall.SIGKILL)
	require.ErrorContains(t, err, "killed")
	require.Zero(t, shared.Agent.PID())
}

// errored waits until the server is in ERROR and shows why: whoever puts it there may store the fault after the state.
func errored(t *testing.T, id string) cloud.Server {
	t.Helper()
	var server cloud.Server
	eventually(t, time.Minute, "status ERROR with a fault", func(ctx context.Context) (bool, error) {
		var err error
		server, err = shared.Admin.Server(ctx, id)
		return server.Status == "ERROR" && server.TaskState == "" && server.Fault != nil, err
	})
	t.Logf("fault: %s", server.Fault.Message)
	return server
}

// statusIn waits until the server has one of the statuses and no task.
func statusIn(t *testing.T, limit time.Duration, id string, statuses ...string) cloud.Server {
	t.Helper()
	var server cloud.Server
	eventually(t, limit, "status "+strings.Join(statuses, " or "), func(ctx context.Context) (bool, error) {
		var err error
		server, err = shared.Admin.Server(ctx, id)
		return slices.Contains(statuses, server.Status) && server.TaskState == "", err
	})
	return server
}
