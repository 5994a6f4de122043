//go:build functional

package functional

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// rescue puts a server into rescue and returns the password.
func rescue(t *testing.T, id string, args map[string]any) string {
	t.Helper()
	var answer struct{ AdminPass string }
	require.NoError(t, shared.Admin.Action(within(t, 30*time.Second), id, "rescue", args, &answer))
	_, err := shared.Admin.WaitStatus(within(t, time.Minute), id, "RESCUE")
	require.NoError(t, err)
	return answer.AdminPass
}

func TestRescue(t *testing.T) {
	before := snapshot(t)
	server := boot(t, cloud.NewServer{Flavor: shared.Small})
	answers(t, server)
	inside(t, server.ID, "sh", "-c", "echo mine > /mark; chown 1000:1000 /mark")
	running := snapshot(t)
	image := copyOfBusybox(t, "rescue-other")

	stop := follow(t, server.ID)
	password := rescue(t, server.ID, map[string]any{"rescue_image_ref": image, "adminPass": "let-me-in"})
	sawTask(t, stop(), "rescuing")
	require.Equal(t, "let-me-in", password)
	rescued, err := shared.Admin.Server(within(t, 10*time.Second), server.ID)
	require.NoError(t, err)
	require.Equal(t, 1, rescued.PowerState)
	answers(t, rescued)
	require.Equal(t, []string{"compute_rescue_instance Success"}, actionEvents(t, server.ID, "rescue"))
	require.Equal(t, "mine", inside(t, server.ID, "cat", "/mnt/mark"), "the server's own root is inside")
	require.Equal(t, "1000 1000", inside(t, server.ID, "stat", "-c", "%u %g", "/mnt/mark"))
	require.Equal(t, "none", inside(t, server.ID, "sh", "-c", "test -e /mark && echo there || echo none"))
	inside(t, server.ID, "sh", "-c", "echo repaired > /mnt/mark; touch /only-here")

	first := booted(t, server.ID)
	shutDown(t, server.ID, "reboot") // the API refuses one in rescue
	eventually(t, 20*time.Second, "a rescue system that has booted again", func(ctx context.Context) (bool, error) {
		stat, err := shared.Agent.Exec(ctx, server.ID, "cat", "/proc/1/stat")
		fields := strings.Fields(stat)
		return err == nil && len(fields) > 21 && fields[21] != first, nil
	})
	inside(t, server.ID, "test", "-e", "/only-here")
	require.Equal(t, "repaired", inside(t, server.ID, "cat", "/mnt/mark"))

	killAgent(t)
	startAgent(t)
	require.Equal(t, "repaired", inside(t, server.ID, "cat", "/mnt/mark"), "the agent's end touches no guest")

	act(t, server.ID, "unrescue", nil, "ACTIVE")
	require.Equal(t, []string{"compute_unrescue_instance Success"}, actionEvents(t, server.ID, "unrescue"))
	answers(t, server)
	require.Equal(t, "repaired", inside(t, server.ID, "cat", "/mark"))
	require.Equal(t, "none", inside(t, server.ID, "sh", "-c", "test -e /only-here && echo there || echo none"))
	asBefore(t, running)
	remove(t, server.ID)
	asBefore(t, before)
}

// TestRescueOwnImage: without a choice it is the image that the server was made from; a delete in rescue leaves nothing.
func TestRescueOwnImage(t *testing.T) {
	before := snapshot(t)
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	inside(t, server.ID, "touch", "/mark")
	require.NotEmpty(t, rescue(t, server.ID, map[string]any{}), "nova makes a password")
	inside(t, server.ID, "test", "-e", "/mnt/mark")
	remove(t, server.ID)
	noAllocations(t, server.ID)
	asBefore(t, before)
}

// TestKilledWhileRescuing: the next start ends what was begun.
func TestKilledWhileRescuing(t *testing.T) {
	before := snapshot(t)
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	inside(t, server.ID, "touch", "/mark")
	for _, step := range []struct {
		action, status, file string
		after                time.Duration
	}{
		{"rescue", "RESCUE", "/mnt/mark", 50 * time.Millisecond},
		{"unrescue", "ACTIVE", "/mark", 50 * time.Millisecond},
		{"rescue", "RESCUE", "/mnt/mark", 300 * time.Millisecond},
		{"unrescue", "ACTIVE", "/mark", 200 * time.Millisecond},
	} {
		var args any
		if step.action == "rescue" {
			args = map[string]any{}
		}
		require.NoError(t, shared.Admin.Action(within(t, 30*time.Second), server.ID, step.action, args, nil))
		time.Sleep(step.after)
		killAgent(t)
		startAgent(t)
		statusIn(t, time.Minute, server.ID, step.status)
		inside(t, server.ID, "test", "-e", step.file)
	}
	remove(t, server.ID)
	asBefore(t, before)
}

// TestUnrescueOfWhatDoesNotBoot: a server that its owner has not mended is in error and has nothing mounted on the host, and is mended in
// another rescue.
func TestUnrescueOfWhatDoesNotBoot(t *testing.T) {
	before := snapshot(t)
	server := boot(t, cloud.NewServer{Flavor: flavor(t, cloud.NewFlavor{Disk: 1, Ephemeral: 1}, nil), Networks: "none"})
	rescue(t, server.ID, map[string]any{})
	inside(t, server.ID, "mv", "/mnt/sbin/init", "/mnt/sbin/init.away")
	require.NoError(t, shared.Admin.Action(within(t, 30*time.Second), server.ID, "unrescue", nil, nil))
	statusIn(t, time.Minute, server.ID, "ERROR")
	noDisks(t, server.ID)

	require.NoError(t, shared.Admin.Action(within(t, 30*time.Second), server.ID, "rescue", map[string]any{}, nil))
	statusIn(t, time.Minute, server.ID, "RESCUE") // not rescue, which takes the error for that of the rescue
	inside(t, server.ID, "mv", "/mnt/sbin/init.away", "/mnt/sbin/init")
	act(t, server.ID, "unrescue", nil, "ACTIVE")
	inside(t, server.ID, "test", "-x", "/sbin/init")
	remove(t, server.ID)
	asBefore(t, before)
}
