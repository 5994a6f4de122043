//go:build functional

package functional

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// hookTimeout is how long the agent waits for each call of a guest's hook.
const hookTimeout = time.Minute

// putHook gives a guest the hook of qemu-guest-agent: a script that notes its calls and does more for each.
func putHook(t *testing.T, id, freeze, thaw string) {
	t.Helper()
	script := "#!/bin/sh\necho $1 >> /calls\ncase $1 in\nfreeze)\n" + freeze + "\n;;\nthaw)\n" + thaw + "\n;;\nesac\n"
	inside(t, id, "sh", "-c", `mkdir -p /etc/qemu && echo "$1" > /etc/qemu/fsfreeze-hook && chmod 755 /etc/qemu/fsfreeze-hook && rm -f /calls`, "sh", script)
}

// hookCalls are those that the guest has noted.
func hookCalls(t *testing.T, id string) string {
	t.Helper()
	return strings.Join(strings.Fields(inside(t, id, "sh", "-c", "cat /calls 2>/dev/null || true")), " ")
}

// noImage asks for an image of a server and requires that there is none in the end, for a reason that the agent logs.
func noImage(t *testing.T, server, reason string) {
	t.Helper()
	_, from, err := shared.Agent.Log(0)
	require.NoError(t, err)
	image := createImage(t, server, "none-of-"+server)
	statusIn(t, hookTimeout+time.Minute, server, "ACTIVE")
	require.Equal(t, []string{"compute_snapshot_instance Error"}, actionEvents(t, server, "createImage"))
	_, err = readImage(within(t, 10*time.Second), image)
	require.True(t, cloud.IsStatus(err, 404), "%v", err)
	logged, _, err := shared.Agent.Log(from)
	require.NoError(t, err)
	require.Contains(t, logged, reason)
}

// TestQuiesce: what runs in a guest is told of a snapshot by the guest's own hook. What it did before is in the image, what
// it did after is not.
func TestQuiesce(t *testing.T) {
	before := snapshot(t)
	server := boot(t, cloud.NewServer{Flavor: shared.Small, Networks: "none"})
	// As the sample for MySQL does it: something waits in the background, and holds what it holds until it is told.
	const freeze = "echo flushed > /mark; touch /held; (while [ -e /held ]; do sleep 0.1; done; echo released; echo released >> /calls) &"
	putHook(t, server.ID, freeze, "rm /mark /held; sleep 0.5")
	running := snapshot(t)
	image := createImage(t, server.ID, "snapshot-of-"+server.ID)
	imageActive(t, image)
	statusIn(t, time.Minute, server.ID, "ACTIVE")
	require.Equal(t, "freeze thaw released", hookCalls(t, server.ID))
	require.Equal(t, "gone", inside(t, server.ID, "sh", "-c", "test -e /mark || echo gone"))
	asBefore(t, running)

	copied := boot(t, cloud.NewServer{Image: image, Name: "copy-of-" + server.ID, Networks: "none"})
	require.Equal(t, "flushed", inside(t, copied.ID, "cat", "/mark"))
	require.Equal(t, "freeze", hookCalls(t, copied.ID))
	remove(t, copied.ID)

	act(t, server.ID, "pause", nil, "PAUSED")
	imageActive(t, createImage(t, server.ID, "paused-"+server.ID))
	statusIn(t, time.Minute, server.ID, "PAUSED")
	act(t, server.ID, "unpause", nil, "ACTIVE")
	require.Equal(t, "freeze thaw released", hookCalls(t, server.ID), "a guest that stands still is not asked")
	remove(t, server.ID)
	asBefore(t, before)
}

// TestQuiesceFails: a hook that fails costs a snapshot of an image with os_require_quiesce, and no other one.
func TestQuiesceFails(t *testing.T) {
	const fails = "echo the database is >&2; echo away > /dev/stderr; exit 3"
	t.Run("not required", func(t *testing.T) {
		server := boot(t, cloud.NewServer{Flavor: shared.Small, Networks: "none"})
		putHook(t, server.ID, fails, "true")
		_, from, err := shared.Agent.Log(0)
		require.NoError(t, err)
		imageActive(t, createImage(t, server.ID, "snapshot-of-"+server.ID))
		statusIn(t, time.Minute, server.ID, "ACTIVE")
		require.Equal(t, "freeze thaw", hookCalls(t, server.ID))
		logged, _, err := shared.Agent.Log(from)
		require.NoError(t, err)
		require.Contains(t, logged, `output=away`, "which was opened anew")
	})
	t.Run("required", func(t *testing.T) {
		image := upload(t, shared.Plane.BusyboxPath(), "raw", map[string]any{"os_require_quiesce": "yes"})
		server := boot(t, cloud.NewServer{Image: image, Flavor: shared.Small, Networks: "none"})
		noImage(t, server.ID, "the guest has no /etc/qemu/fsfreeze-hook")
		putHook(t, server.ID, fails, "true")
		noImage(t, server.ID, "/etc/qemu/fsfreeze-hook freeze: exit status 3")
		require.Equal(t, "freeze thaw", hookCalls(t, server.ID))
		putHook(t, server.ID, "true", "true")
		imageActive(t, createImage(t, server.ID, "snapshot-of-"+server.ID))
		statusIn(t, time.Minute, server.ID, "ACTIVE")
		require.Equal(t, "freeze thaw", hookCalls(t, server.ID))
	})
}

// TestQuiesceFloods: what a hook writes without end costs neither the host's memory nor the guest's.
func TestQuiesceFloods(t *testing.T) {
	server := boot(t, cloud.NewServer{Flavor: flavor(t, cloud.NewFlavor{Disk: 1}, nil), Networks: "none"})
	first := booted(t, server.ID)
	putHook(t, server.ID, "dd if=/dev/zero bs=64k count=8192 2> /errors; exit 5", "true")
	imageActive(t, createImage(t, server.ID, "snapshot-of-"+server.ID))
	statusIn(t, time.Minute, server.ID, "ACTIVE")
	require.Equal(t, "freeze thaw", hookCalls(t, server.ID))
	require.Contains(t, inside(t, server.ID, "cat", "/errors"), "No space left on device")
	require.Equal(t, first, booted(t, server.ID))
	require.NotRegexp(t, `oom_kill [1-9]`, inside(t, server.ID, "sh", "-c", "cat /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control 2>/dev/null; true"))
}

// TestQuiesceHangs: a hook that never ends, ignores signals and leaves writers behind keeps its snapshot for as long as
// the deadline says, no other server at all, and a delete of its own for a moment.
func TestQuiesceHangs(t *testing.T) {
	const deaf = "trap '' HUP INT QUIT PIPE TERM; "
	const hangs = deaf + `setsid sh -c "` + deaf + `while :; do echo noise; sleep 0.01; done" & while :; do sleep 1; done`
	other := boot(t, cloud.NewServer{Name: "other", Flavor: shared.Small, Networks: "none"})
	server := boot(t, cloud.NewServer{Flavor: shared.Small, Networks: "none"})
	putHook(t, server.ID, hangs, "true")
	began := time.Now()
	image := createImage(t, server.ID, "snapshot-of-"+server.ID)
	imageActive(t, createImage(t, other.ID, "snapshot-of-"+other.ID))
	require.Less(t, time.Since(began), hookTimeout, "it does not wait for the other's")
	imageActive(t, image)
	took := time.Since(began)
	require.Greater(t, took, hookTimeout)
	require.Less(t, took, 2*hookTimeout, "one call is waited for")
	statusIn(t, time.Minute, server.ID, "ACTIVE")
	require.Equal(t, "freeze thaw", hookCalls(t, server.ID))

	putHook(t, server.ID, "true", hangs)
	createImage(t, server.ID, "cancelled")
	eventually(t, normalTime, "hook to hang", func(ctx context.Context) (bool, error) {
		out, err := shared.Agent.Exec(ctx, server.ID, "sh", "-c", "cat /calls 2>/dev/null || true")
		return strings.Contains(out, "thaw"), err
	})
	began = time.Now()
	remove(t, server.ID)
	require.Less(t, time.Since(began), hookTimeout*3/4)
}

// TestQuiesceInterrupted: what the hook began is ended when the agent ends in between, too, and the snapshot taken all the same.
func TestQuiesceInterrupted(t *testing.T) {
	for name, how := range map[string]syscall.Signal{"agent killed": syscall.SIGKILL, "agent stopped": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			server := boot(t, cloud.NewServer{Flavor: shared.Small, Networks: "none"})
			const holds = hookTimeout - 2*time.Second
			putHook(t, server.ID, fmt.Sprintf("[ -e /again ] || { touch /again; sleep %.0f; }", holds.Seconds()), "true")
			image := createImage(t, server.ID, "snapshot-of-"+server.ID)
			eventually(t, normalTime, "hook to be called", func(ctx context.Context) (bool, error) {
				out, err := shared.Agent.Exec(ctx, server.ID, "sh", "-c", "test -e /again && echo yes || true")
				return strings.Contains(out, "yes"), err
			})
			began := time.Now()
			restartAgent(t, how)
			imageActive(t, image)
			require.Less(t, time.Since(began), holds, "the first call is not waited for")
			statusIn(t, time.Minute, server.ID, "ACTIVE")
			require.Equal(t, "freeze thaw freeze thaw", hookCalls(t, server.ID))
		})
	}
}
