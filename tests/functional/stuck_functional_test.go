//go:build functional

package functional

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// normalTime bounds an operation on a guest beside one that is stuck: they take a second or two, and a kill that does not work 30.
const normalTime = 25 * time.Second

// ioctls of linux/fs.h.
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

// rootDevice is the loop device of a server's root disk.
func rootDevice(t *testing.T, id string) string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	require.NoError(t, err)
	for _, file := range files {
		if backing, err := os.ReadFile(file); err == nil && strings.Contains(string(backing), id) {
			return strings.Split(file, "/")[3]
		}
	}
	require.Fail(t, "the root disk is no device of its own")
	return ""
}

// freezeDisk stops all writing to a server's root disk, as a storage that hangs does, until thaw is called.
func freezeDisk(t *testing.T, id string) (thaw func()) {
	t.Helper()
	place := t.TempDir() // the same file system once more: where the server has it no path leads to
	require.NoError(t, unix.Mount("/dev/"+rootDevice(t, id), place, "ext4", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(place, 0)) })
	dir, err := os.Open(place)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, dir.Close()) })
	require.NoError(t, unix.IoctlSetInt(int(dir.Fd()), fiFreeze, 0))
	thaw = sync.OnceFunc(func() { require.NoError(t, unix.IoctlSetInt(int(dir.Fd()), fiThaw, 0)) })
	t.Cleanup(thaw)
	return thaw
}

// TestStuckGuest: a process that no signal ends, in one guest, delays no other; nor does a full disk the guest that has it. What was asked of
// the stuck one fails in the end, and its state is put right when it can be.
func TestStuckGuest(t *testing.T) {
	small := flavor(t, cloud.NewFlavor{Disk: 1}, nil)
	stuck := boot(t, cloud.NewServer{Name: "stuck", Flavor: small, Networks: "none"})
	full := boot(t, cloud.NewServer{Name: "full", Flavor: small, Networks: "none"})
	out, err := shared.Agent.Exec(within(t, time.Minute), full.ID, "sh", "-c", "dd if=/dev/zero of=/large bs=1M 2>&1; echo more 2>&1 > /more; true")
	require.NoError(t, err)
	require.Contains(t, out, "No space left on device")
	inside(t, full.ID, "sync") // else it does as it halts, for as long as the host's disk takes

	thaw := freezeDisk(t, stuck.ID)
	writer := shared.Agent.ExecCommand(t.Context(), stuck.ID, "sh", "-c", "echo x > /stuck")
	require.NoError(t, writer.Start())
	t.Cleanup(func() { _ = writer.Wait() }) // it was killed with its guest
	time.Sleep(time.Second)                 // for the write to hang
	require.NoError(t, shared.Admin.Action(within(t, time.Minute), stuck.ID, "reboot", map[string]string{"type": "HARD"}, nil))

	beside := 0 // a slow machine may not come to all of them before the kill is given up
	for _, step := range []struct {
		action, status string
		args           any
	}{{"os-stop", "SHUTOFF", nil}, {"os-start", "ACTIVE", nil}, {"reboot", "ACTIVE", map[string]string{"type": "HARD"}}} {
		require.Less(t, act(t, full.ID, step.action, step.args, step.status), normalTime)
		now, err := shared.Admin.Server(within(t, time.Minute), stuck.ID)
		require.NoError(t, err)
		if now.Status == "HARD_REBOOT" {
			beside++
		}
	}
	t.Logf("%d operations ended while the other guest was stuck", beside)
	require.Positive(t, beside)
	remove(t, full.ID)

	require.Contains(t, errored(t, stuck.ID).Fault.Message, "the guest's init does not die")
	thaw()
	eventually(t, time.Minute, "the stuck guest to end", func(ctx context.Context) (bool, error) {
		server, err := shared.Admin.Server(ctx, stuck.ID)
		return server.PowerState == 4, err // SHUTDOWN
	})
	require.NoError(t, shared.Admin.Action(within(t, time.Minute), stuck.ID, "reboot", map[string]string{"type": "HARD"}, nil))
	statusIn(t, time.Minute, stuck.ID, "ACTIVE")
	require.Equal(t, "up", inside(t, stuck.ID, "sh", "-c", "echo x > /free && echo up"))
}
