package storagetest

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ext4"
	"github.com/compute-agent/compute-agent/internal/storage/loop"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// childVariable holds the directory in which this binary, started again, shall make and delete root disks, and
// their image's, with a colon in between.
const childVariable = "STORAGETEST_CHILD"

const (
	// rounds of killing; each is another step at which the process ends.
	rounds = 25
	// cuts of power; so is each of these.
	cuts = 50
)

// child makes, mounts, unmounts and deletes root disks until it is killed.
func (s suite) child(t *testing.T, directories string) {
	t.Helper()
	var e Environment
	e.Dir, e.Image, _ = strings.Cut(directories, ":")
	b, err := s.Open(e.Dir)
	require.NoError(t, err)
	fmt.Println("ready") //nolint:forbidigo // the parent waits for it
	ctx := context.Background()
	for i := uint32(0); ; i++ {
		r := root(e, fmt.Sprintf("k%d", i%3), i%3, 1)
		require.NoError(t, b.Create(ctx, r))
		path, err := b.Mount(ctx, r)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(path, "tmp/file"), []byte("x"), 0o600))
		require.NoError(t, b.Unmount(ctx, r.InstanceID))
		_, err = b.Mount(ctx, r)
		require.NoError(t, err)
		require.NoError(t, b.Delete(ctx, r.InstanceID))
	}
}

// interrupt runs child, has cut strike it at a moment that nobody knows before, and ends it.
func (s suite) interrupt(t *testing.T, e Environment, cut func()) {
	t.Helper()
	test := "^" + strings.ReplaceAll(s.name, "/", "$/^") + "$"
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run="+test) //nolint:gosec // this very binary
	cmd.Env = append(os.Environ(), childVariable+"="+e.Dir+":"+e.Image)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "ready" { // what the testing package prints comes first
	}
	time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond) //nolint:forbidigo,gosec // the point is not to know when
	cut()
	require.NoError(t, cmd.Process.Kill())
	for lines.Scan() {
	}
	_ = cmd.Wait()
}

// restarted is the back end after an interruption, without what was half made. The root disks that it has are deleted,
// but for those to be kept.
func (s suite) restarted(t *testing.T, e Environment, keep ...string) storage.Backend {
	t.Helper()
	b, err := s.Open(e.Dir)
	require.NoError(t, err)
	half, err := os.ReadDir(filepath.Join(e.Dir, ".new"))
	require.NoError(t, err)
	require.Empty(t, half)
	list, err := b.List(t.Context())
	require.NoError(t, err)
	require.Subset(t, list, keep)
	for _, id := range list {
		if !slices.Contains(keep, id) {
			require.NoError(t, b.Delete(t.Context(), id))
		}
	}
	return b
}

// killed: a process that is killed at any point leaves what the next one can use or take away.
func (s suite) killed(t *testing.T, e Environment, _ storage.Backend) {
	for range rounds {
		s.interrupt(t, e, func() {})
		s.restarted(t, e)
	}
	s.unharmed(t, e)
}

// unharmed: root disks of the names that were used before can be made and used, and what was discarded goes.
func (s suite) unharmed(t *testing.T, e Environment) {
	t.Helper()
	b, err := s.Open(e.Dir)
	require.NoError(t, err)
	for n := range uint32(3) {
		path := up(t, b, root(e, fmt.Sprintf("k%d", n), n, 1))
		require.NoFileExists(t, filepath.Join(path, "tmp/file"))
	}
	runUntilEmpty(t, b, e)
}

// powerCut is cutPower on a file system of the suite's own. It is for back ends that do with any.
func (s suite) powerCut(t *testing.T, e Environment, _ storage.Backend) {
	host := filepath.Join(filepath.Dir(e.Dir), "host")
	disk := host + ".img"
	require.NoError(t, ext4.Create(t.Context(), disk, ext4.Format{SizeGB: 1}))
	require.NoError(t, os.Mkdir(host, 0o755)) //nolint:gosec // guests pass through it
	start := func() { require.NoError(t, ext4.Mount(t.Context(), disk, host, 1)) }
	start()
	s.cutPower(t, e, host, start, func() { require.NoError(t, ext4.Shutdown(disk)) })
}

// cutPower: a host that loses its power at any point has the root disks that were on disk, with what their guests had
// forced to disk. The others can be taken away. start mounts the host's file system at host, as it is already; cut has it take no more,
// and forget what it has not written.
func (s suite) cutPower(t *testing.T, e Environment, host string, start, cut func()) {
	t.Helper()
	t.Cleanup(func() { unmountAll(t, host) })
	e.Dir = filepath.Join(host, "roots")
	b, err := s.Open(e.Dir)
	require.NoError(t, err)
	kept := root(e, "kept", 4, 1)
	require.NoError(t, b.Create(t.Context(), kept))
	force(t, host)
	for n := range cuts {
		path, err := b.Mount(t.Context(), kept)
		require.NoError(t, err)
		file := filepath.Join(path, "tmp", "round")
		require.NoError(t, os.WriteFile(file, []byte{byte(n)}, 0o600))
		force(t, file)
		s.interrupt(t, e, cut)
		unmountAll(t, host)
		start()
		b = s.restarted(t, e, kept.InstanceID)
		path, err = b.Mount(t.Context(), kept)
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(path, "tmp", "round"))
		require.NoError(t, err)
		require.Equal(t, []byte{byte(n)}, got)
	}
	s.unharmed(t, e)
	require.NoError(t, b.Delete(t.Context(), kept.InstanceID))
}

// force has everything of the file system that a file is in written to its disk.
func force(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close() //nolint:errcheck // nothing was written
	require.NoError(t, unix.Syncfs(int(f.Fd())))
}

// unmountAll unmounts a directory and all below it, and waits until nobody holds their disks.
func unmountAll(t *testing.T, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	for _, point := range slices.Backward(mountsBelow(t, dir)) {
		require.NoError(t, mount.Unmount(ctx, point))
	}
	require.Empty(t, Leftovers(t, dir))
}

// runUntilEmpty has the back end remove what was deleted.
func runUntilEmpty(t *testing.T, b storage.Backend, e Environment) {
	t.Helper()
	runner, ok := b.(storage.Runner)
	require.True(t, ok)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- runner.Run(ctx) }()
	require.Eventually(t, func() bool {
		left, err := os.ReadDir(filepath.Join(e.Dir, ".trash"))
		return err == nil && len(left) == 0
	}, time.Minute, 10*time.Millisecond, "Run frees the space")
	cancel()
	require.NoError(t, <-done)
}

// SmallFileSystem mounts an ext4 of some MiB at dir and takes it away with the test.
func SmallFileSystem(t testing.TB, dir string, megabytes int64) {
	t.Helper()
	file := dir + ".small"
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, megabytes<<20))
	out, err := exec.Command("/sbin/mkfs.ext4", "-q", "-F", "-m", "0", file).CombinedOutput() //nolint:noctx // it takes a moment
	require.NoError(t, err, string(out))
	device, err := loop.Attach(file)
	require.NoError(t, err)
	defer device.Close()                        //nolint:errcheck // nothing was written
	require.NoError(t, os.MkdirAll(dir, 0o755)) //nolint:gosec // guests pass through it
	require.NoError(t, mount.New("ext4", dir, mount.Option{Key: "source", Value: device.Name()}))
	t.Cleanup(func() { require.NoError(t, mount.Detach(dir)) })
}

// fullHost: where the pool is full a root disk is refused with that reason, and nothing is left of it. It is for
// back ends that do with any file system.
func (s suite) fullHost(t *testing.T, e Environment, _ storage.Backend) {
	dir := filepath.Join(filepath.Dir(e.Dir), "small")
	SmallFileSystem(t, dir, 64)
	e.Dir = filepath.Join(dir, "roots")
	b, err := s.Open(e.Dir)
	require.NoError(t, err)
	ballast := filepath.Join(dir, "ballast")
	_, err = writeUntilFull(t, ballast, 64)
	require.ErrorIs(t, err, unix.ENOSPC)
	err = b.Create(t.Context(), root(e, "a", 0, 1))
	require.ErrorIs(t, err, storage.ErrNoSpace)
	list, err := b.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, list)
	half, err := os.ReadDir(filepath.Join(e.Dir, ".new"))
	require.NoError(t, err)
	require.Empty(t, half)
	require.NoError(t, os.Remove(ballast))
	path := up(t, b, root(e, "a", 0, 1))
	require.FileExists(t, filepath.Join(path, "etc/hostname"), "there is room again")
	usage, err := b.Usage(t.Context())
	require.NoError(t, err)
	require.Less(t, usage.Total, uint64(64<<20))
}
