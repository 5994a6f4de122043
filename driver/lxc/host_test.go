package lxc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/functest"
	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/storage"
)

func contextWithTimeout(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), d)
}

func TestCheckIDMap(t *testing.T) {
	t.Parallel()
	both := map[string]bool{"newuidmap": true, "newgidmap": true}
	pool := []storage.IDRange{{Base: 1000000, Size: 1000 * 65536}}
	for _, test := range []struct {
		name    string
		tools   map[string]bool
		granted []hostinfo.IDRange
		failure error
		want    string // in the first problem; empty: none
	}{
		{"good", both, []hostinfo.IDRange{{Base: 1, Size: 10}, {Base: 1000000, Size: 1000000000}}, nil, ""},
		{"no tools", map[string]bool{}, nil, nil, ""},
		{"one tool", map[string]bool{"newuidmap": true}, []hostinfo.IDRange{{Base: 1000000, Size: 1000000000}}, nil, "only one of"},
		{"none", both, nil, nil, "no ids"},
		{"too small", both, []hostinfo.IDRange{{Base: 1000000, Size: 65536}}, nil, "may not map ids 1000000 to"},
		{"garbage", both, nil, errors.New("line 3 has no valid range"), "line 3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			problems := checkIDMap(pool, test.tools, test.granted, test.failure)
			if test.want == "" {
				require.Empty(t, problems)
				return
			}
			require.NotEmpty(t, problems)
			require.Contains(t, problems[0].What, test.want)
			require.NotEmpty(t, problems[0].Remedy)
			require.True(t, problems[0].Fatal)
		})
	}
}

func TestResolveIn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, d := range []string{"mnt", "var/data", "var/with blank"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for name, target := range map[string]string{
		"link": "var/data", "absolute": "/var/data", "up": "../../../../var/data", "loop": "loop", "root": "/", "blank": "/var/with blank", "dangling": "/nowhere/at/all",
	} {
		require.NoError(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	defer unix.Close(root)
	for path, want := range map[string]string{
		"mnt": "mnt", "mnt/new": "mnt/new", "new": "new", "new/deep": "new/deep", "link": "var/data", "absolute": "var/data", "up": "var/data",
		"link/new": "var/data/new", "loop": "", "root": "", "blank": "",
	} {
		got, err := resolveIn(root, path)
		if want == "" {
			require.Error(t, err, path)
			continue
		}
		require.NoError(t, err, path)
		require.Equal(t, want, got, path)
	}
}

// TestResolveBesideRenames: the kernel gives a path with ".." up when anything is renamed meanwhile, wherever that is.
func TestResolveBesideRenames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "mnt"), 0o755))
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	defer unix.Close(root)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a"), nil, 0o600))
	functest.RenameUntilEnd(t, filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	for range 5000 {
		got, err := resolveIn(root, strings.Repeat("mnt/../", 20)+"mnt")
		require.NoError(t, err)
		require.Equal(t, "mnt", got)
	}
}

func TestErrorLines(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "lxc.log")
	require.NoError(t, os.WriteFile(log, []byte(`lxc c1 20261120215559.587 WARN     cgfsng - ../src/lxc/cgroups/cgfsng.c:f:1 - harmless
lxc c1 20261120215559.587 ERROR    conf - ../src/lxc/conf.c:lxc_map_ids:3708 - newuidmap failed: no - really
lxc c1 20261120215559.587 ERROR    lxccontainer - ../src/lxc/lxccontainer.c:wait:878 - Received container state "ABORTING" instead of "RUNNING"
start container: starting the container failed
`), 0o600))
	require.Equal(t, []string{"newuidmap failed: no - really"}, errorLines(log))
	require.NoError(t, os.WriteFile(log, []byte("start container: starting the container failed\n"), 0o600))
	require.Equal(t, []string{"start container: starting the container failed"}, errorLines(log))
	require.Empty(t, errorLines(log+".none"))
}

func TestTail(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "log")
	got, err := tail(file, 10)
	require.NoError(t, err)
	require.Empty(t, got)
	require.NoError(t, os.WriteFile(file, []byte("0123456789"), 0o600))
	for n, want := range map[int]string{-1: "", 0: "", 3: "789", 10: "0123456789", 99: "0123456789"} {
		got, err := tail(file, n)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
}

func TestRecords(t *testing.T) {
	t.Parallel()
	d := &Driver{o: Options{StateDir: t.TempDir()}}
	r := record{RootFS: "/r", Spec: driver.Spec{UUID: "u1", Name: "n1", Env: map[string]string{"A": "b"}, Limits: flavor.Limits{PIDs: 5}}}
	require.NoError(t, d.save(r))
	got, err := d.load("u1")
	require.NoError(t, err)
	require.Equal(t, r, got)
	for _, uuid := range []string{"u2", "", "../u1", "/etc/passwd"} {
		_, err = d.load(uuid)
		require.ErrorIs(t, err, driver.ErrNotFound, uuid)
	}
	require.NoError(t, os.WriteFile(filepath.Join(d.o.StateDir, "broken.json"), []byte("{"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(d.o.StateDir, ".u9.json.123"), []byte("{"), 0o600))
	all, err := d.records(t.Context())
	require.NoError(t, err)
	require.Equal(t, []record{r}, all, "a broken record does not hide the others")
	st, err := os.Stat(d.recordFile("u1"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm(), "the environment may hold secrets")
	require.NoError(t, d.remove("u1"))
	require.NoError(t, d.remove("u1"))
}

func TestProcess(t *testing.T) {
	t.Parallel()
	self := os.Getpid()
	started, err := startedAt(self)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), started, 10*time.Minute)
	require.True(t, alive(self))
	require.True(t, handles(self, unix.SIGURG), "the Go runtime's own")
	require.NotEmpty(t, sharedNamespaces(self, false), "this process is the host's")
	p, err := openProcess(self, func() bool { return true })
	require.NoError(t, err)
	require.False(t, p.exited())
	p.close()
	_, err = openProcess(self, func() bool { return false })
	require.ErrorIs(t, err, unix.ESRCH)
}

func TestAwaitEnd(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	require.NoError(t, cmd.Start())
	ours := func() bool { return true }
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, awaitEnd(short, cmd.Process.Pid, ours), driver.ErrTimeout)
	ended := make(chan error, 1)
	go func() { ended <- awaitEnd(t.Context(), cmd.Process.Pid, ours) }()
	require.NoError(t, cmd.Process.Kill())
	require.NoError(t, <-ended, "seen before anybody reaps the process")
	require.False(t, alive(cmd.Process.Pid))
	require.NoError(t, awaitEnd(t.Context(), cmd.Process.Pid, ours), "nor does it matter that it has ended already")
	require.Error(t, cmd.Wait())
	require.NoError(t, awaitEnd(t.Context(), cmd.Process.Pid, ours))
	require.NoError(t, awaitEnd(t.Context(), os.Getpid(), func() bool { return false }), "the number is another's by now")
}

func TestChildMain(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"--config-file", "x"}, {"help"}} {
		handled, _ := ChildMain(args)
		require.False(t, handled)
	}
	handled, code := ChildMain([]string{"forkstart"})
	require.True(t, handled)
	require.Equal(t, exitUsage, code)
}

func TestEnterable(t *testing.T) {
	t.Parallel()
	ids := storage.IDRange{Base: 1000000, Size: 65536}
	require.NoError(t, enterable("/usr/bin", ids))
	closed := filepath.Join(t.TempDir(), "closed")
	require.NoError(t, os.Mkdir(closed, 0o700))
	require.ErrorContains(t, enterable(filepath.Join(closed, "root"), ids), "may not enter")
	require.Error(t, enterable("/no/such/root", ids))
}

func TestCheckInotify(t *testing.T) {
	t.Parallel()
	require.Empty(t, checkInotify(65536, nil))
	require.Empty(t, checkInotify(0, os.ErrNotExist))
	problems := checkInotify(128, nil)
	require.Len(t, problems, 1)
	require.False(t, problems[0].Fatal)
	require.Contains(t, problems[0].Remedy, "fs.inotify.max_user_instances")
}

// TestHaltWithoutInit: a guest whose init has ended is on its way down, and needs only time.
func TestHaltWithoutInit(t *testing.T) {
	t.Parallel()
	d := &Driver{}
	for _, kind := range []initSystem{initSystemd, initSysV} {
		require.NoError(t, d.askToHalt(t.Context(), record{}, kind, guest{monitor: os.Getpid()}))
	}
}
