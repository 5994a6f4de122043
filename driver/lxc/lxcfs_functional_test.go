//go:build functional

package lxc

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/functest"
)

// dead is what a read says when lxcfs has gone.
const dead = "Transport endpoint is not connected"

// startLXCFS runs lxcfs, and returns what kills it and, as its systemd unit does, unmounts what it leaves.
func startLXCFS(t *testing.T, mount string) (kill, unmount func()) {
	t.Helper()
	program, err := exec.LookPath("lxcfs")
	functest.Need(t, err == nil, "lxcfs")
	_, err = os.Stat("/dev/fuse")
	functest.Need(t, err == nil, "/dev/fuse")
	require.NoError(t, os.MkdirAll(mount, 0o755))
	cmd := exec.CommandContext(context.Background(), program, "-f", "-p", mount+".pid", mount)
	log, err := os.Create(mount + ".log")
	require.NoError(t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	kill = func() {
		_ = cmd.Process.Kill() // killed already
		_ = cmd.Wait()
	}
	unmount = func() {
		for mountedAt(mount) != "" {
			require.NoError(t, unix.Unmount(mount, unix.MNT_DETACH))
		}
	}
	t.Cleanup(func() { kill(); unmount() })
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(mount, "proc", "uptime"))
		return err == nil
	}, time.Minute, 10*time.Millisecond, "lxcfs does not start, see %s", log.Name())
	return kill, unmount
}

// TestFunctionalLXCFS: running guests get the files of an lxcfs that was started again, those that are paused or were started
// meanwhile too, and what a guest has put in their place stays.
func TestFunctionalLXCFS(t *testing.T) {
	mount := filepath.Join(testDir(t), "lxcfs")
	kill, unmount := startLXCFS(t, mount)
	d := newDriver(t, func(o *Options) { o.LXCFSMount = mount })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1) // one end
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-ended) })

	plain, paused, own, linked := started(t, d, nil), started(t, d, nil), started(t, d, nil), started(t, d, nil)
	requireOwnView(t, d, plain.UUID)
	require.NoError(t, d.Pause(t.Context(), paused.UUID))
	run(t, d, own.UUID, "echo mine > /tmp/f && umount /proc/uptime && mount -o bind /tmp/f /proc/uptime")
	// What resolves to a file of the guest's that looks like what is to be mounted over.
	run(t, d, linked.UUID, "mkdir -p /tmp/proc && echo untouched > /tmp/proc/uptime && umount -l /proc && rmdir /proc && ln -s /tmp/proc /proc")
	linkedInit := info(t, d, linked.UUID).InitPID

	kill()
	require.Contains(t, run(t, d, plain.UUID, "cat /proc/uptime 2>&1; true"), dead)
	late := started(t, d, nil)
	require.False(t, served(t, d, late.UUID))
	unmount()
	require.Eventually(t, func() bool { return mountedAt(mount) == "" }, 10*time.Second, time.Millisecond)

	_, _ = startLXCFS(t, mount)
	again := time.Now()
	for _, s := range []driver.Spec{plain, late} {
		require.Eventually(t, func() bool { return served(t, d, s.UUID) }, 2*time.Minute, 10*time.Millisecond)
	}
	t.Logf("guests see lxcfs again after %s", time.Since(again).Round(10*time.Millisecond))
	requireOwnView(t, d, plain.UUID)
	requireOwnView(t, d, late.UUID)
	require.NoError(t, d.Unpause(t.Context(), paused.UUID))
	requireOwnView(t, d, paused.UUID)
	require.Equal(t, "mine", run(t, d, own.UUID, "cat /proc/uptime"))
	require.Contains(t, run(t, d, own.UUID, "grep MemTotal /proc/meminfo"), " 131072 kB", "the other files are as they are for all")
	content, err := os.ReadFile(procFile(linkedInit, "root/tmp/proc/uptime"))
	require.NoError(t, err)
	require.Equal(t, "untouched\n", string(content))

	// Once more: nothing of the dead ones is left in the guest.
	table, err := os.ReadFile(procFile(info(t, d, plain.UUID).InitPID, "mountinfo"))
	require.NoError(t, err)
	require.Equal(t, len(lxcfsFiles), strings.Count(string(table), " - "+lxcfsType+" "))
	require.Empty(t, run(t, d, plain.UUID, "umount /proc/uptime"), "the guest may take its own away")
}

// TestFunctionalLXCFSWithoutAgent: an agent that starts mends what happened while it was away.
func TestFunctionalLXCFSWithoutAgent(t *testing.T) {
	mount := filepath.Join(testDir(t), "lxcfs")
	kill, unmount := startLXCFS(t, mount)
	d := newDriver(t, func(o *Options) { o.LXCFSMount = mount })
	s := started(t, d, nil)
	kill()
	unmount()
	startLXCFS(t, mount)
	require.Contains(t, run(t, d, s.UUID, "cat /proc/meminfo 2>&1; true"), dead)

	agent, err := New(d.o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1) // one end
	go func() { ended <- agent.Run(ctx) }()
	require.Eventually(t, func() bool { return served(t, d, s.UUID) }, 2*time.Minute, 10*time.Millisecond)
	cancel()
	require.NoError(t, <-ended)
	requireOwnView(t, d, s.UUID)
}

// TestFunctionalLXCFSHangs: one that does not answer is not given to anybody, and waited for by nobody for long.
func TestFunctionalLXCFSHangs(t *testing.T) {
	mount := filepath.Join(testDir(t), "lxcfs")
	kill, unmount := startLXCFS(t, mount)
	d := newDriver(t, func(o *Options) { o.LXCFSMount = mount })
	s := started(t, d, nil)
	kill()
	unmount()
	startLXCFS(t, mount)
	text, err := os.ReadFile(mount + ".pid")
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	require.NoError(t, unix.Kill(pid, unix.SIGSTOP))
	require.Eventually(t, func() bool { return strings.HasPrefix(status(pid, "State"), "T") }, 20*time.Second, time.Millisecond)
	goOn := func() { _ = unix.Kill(pid, unix.SIGCONT) } // twice, once of them to one that goes on
	t.Cleanup(goOn)

	d.lxcfsServer.limit = 200 * time.Millisecond
	k := newLXCFSKeeper(d, 200*time.Millisecond)
	for range 2 {
		began := time.Now()
		require.Equal(t, lxcfsRetry, k.look(t.Context()))
		require.Less(t, time.Since(began), 20*time.Second)
	}
	late := started(t, d, nil)
	require.False(t, served(t, d, late.UUID))
	goOn()
	d.lxcfsServer.limit, k.timeout = lxcfsTimeout, lxcfsTimeout // a busy machine may not do it in what is enough to show that it hangs
	require.Eventually(t, func() bool {
		k.look(t.Context())
		return served(t, d, s.UUID)
	}, 2*time.Minute, 20*time.Millisecond)
}

// served tells whether a running guest's files are served, by a look from the host: nothing has to be started in the guest for it.
func served(t *testing.T, d *Driver, uuid string) bool {
	t.Helper()
	root := procFile(info(t, d, uuid).InitPID, "root")
	for _, f := range lxcfsFiles {
		var st unix.Statfs_t
		if err := unix.Statfs(filepath.Join(root, f), &st); err != nil || st.Type != unix.FUSE_SUPER_MAGIC {
			return false
		}
	}
	return true
}

// requireOwnView confirms that the guest sees its own memory and how long it has run itself.
func requireOwnView(t *testing.T, d *Driver, uuid string) {
	t.Helper()
	out := run(t, d, uuid, "cat /"+strings.Join(lxcfsFiles, " /")+" >/dev/null; cat /proc/uptime; grep MemTotal /proc/meminfo")
	require.NotContains(t, out, dead)
	require.Contains(t, out, " 131072 kB")
	first, _, _ := strings.Cut(out, " ")
	up, err := strconv.ParseFloat(first, 64)
	require.NoError(t, err, out)
	require.LessOrEqual(t, up, time.Since(info(t, d, uuid).StartedAt).Seconds()+5)
}
