package storagetest

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/loop"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// childVariable holds the directory in which this binary, started again, shall make and delete root disks.
const childVariable = "STORAGETEST_CHILD"

// rounds of killing; each is another step at which the process ends.
const rounds = 25

// child makes, mounts, unmounts and deletes root disks until it is killed.
func (s suite) child(t *testing.T, base string) {
	t.Helper()
	e := Environment{Dir: filepath.Join(base, "roots"), Image: filepath.Join(base, "image")}
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

// killed: a process that is killed at any point leaves what the next one can use or take away.
func (s suite) killed(t *testing.T, e Environment, _ storage.Backend) {
	for range rounds {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestConformance$") //nolint:gosec // this very binary
		cmd.Env = append(os.Environ(), childVariable+"="+filepath.Dir(e.Dir))
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		cmd.Stderr = os.Stderr
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for lines.Scan() && lines.Text() != "ready" { // what the testing package prints comes first
		}
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond) //nolint:forbidigo,gosec // the point is not to know when
		require.NoError(t, cmd.Process.Kill())
		for lines.Scan() {
		}
		_ = cmd.Wait()

		b, err := s.Open(e.Dir)
		require.NoError(t, err)
		half, err := os.ReadDir(filepath.Join(e.Dir, ".new"))
		require.NoError(t, err)
		require.Empty(t, half)
		list, err := b.List(t.Context())
		require.NoError(t, err)
		for _, id := range list {
			require.NoError(t, b.Delete(t.Context(), id))
		}
	}
	b, err := s.Open(e.Dir)
	require.NoError(t, err)
	for n := range uint32(3) {
		path := up(t, b, root(e, fmt.Sprintf("k%d", n), n, 1))
		require.NoFileExists(t, filepath.Join(path, "tmp/file"))
	}
	runUntilEmpty(t, b, e)
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
	}, 20*time.Second, 10*time.Millisecond, "Run frees the space")
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
