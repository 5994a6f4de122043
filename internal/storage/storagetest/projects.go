package storagetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/functest"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/loop"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
)

// OpenFiles opens a back end of pool.FileRoots in a directory.
type OpenFiles func(dir string, o pool.FileOptions) (storage.Backend, error)

// projectFileSystems are those with project quotas, and what a guest gets that writes beyond one.
var projectFileSystems = map[string]struct {
	mkfs         string
	plain, quota []string // arguments without and with quotas
	full         unix.Errno
}{
	"ext4": {"/sbin/mkfs.ext4", []string{"-q", "-F", "-m", "0"}, []string{"-O", "project,quota", "-E", "quotatype=prjquota"}, unix.EDQUOT},
	"xfs":  {"/sbin/mkfs.xfs", []string{"-q", "-f"}, nil, unix.ENOSPC}, // fs/xfs/xfs_trans_dquot.c:xfs_trans_dqresv
}

// RunProjects runs the suite with root disks that are bounded by project quotas, on each file system that has them. A
// kernel without them is no fault of the host: what is not run says so.
func RunProjects(t *testing.T, open OpenFiles) {
	t.Helper()
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			s := projectSuite{open: open, fstype: fstype}
			if os.Getenv(childVariable) == "" {
				s.needKernel(t)
			}
			Run(t, s.subject())
			name := t.Name()
			t.Run("power cut", func(t *testing.T) { s.powerCut(t, NewEnvironment(t), name) })
			for name, run := range map[string]func(*testing.T, Environment){
				"both kinds": s.bothKinds, "copy of changes": s.copyOfChanges, "in a guest": s.inGuest, "inodes": s.inodes, "too small": s.tooSmall, "lost": s.lost, "shrink": s.shrink,
			} {
				t.Run(name, func(t *testing.T) {
					e := NewEnvironment(t)
					require.NoError(t, os.Mkdir(e.Dir, 0o755)) //nolint:gosec // guests pass through it
					s.fileSystem(t, e.Dir)
					run(t, e)
				})
			}
		})
	}
}

type projectSuite struct {
	open   OpenFiles
	fstype string
}

// make makes a file system in file.
func (s projectSuite) make(t testing.TB, file string, quota bool) {
	t.Helper()
	fs := projectFileSystems[s.fstype]
	_, err := os.Stat(fs.mkfs)
	functest.Need(t, err == nil, fs.mkfs)
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, 8<<30))
	args := fs.plain
	if quota {
		args = append(slices.Clip(args), fs.quota...)
	}
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), fs.mkfs, append(args, file)...).CombinedOutput()
	require.NoError(t, err, string(out))
}

// mount mounts the file system in file at dir.
func (s projectSuite) mount(t testing.TB, file, dir string, quota bool) error {
	t.Helper()
	device, err := loop.Attach(file)
	require.NoError(t, err)
	defer device.Close() //nolint:errcheck // nothing was written
	options := []mount.Option{{Key: "source", Value: device.Name()}}
	if quota {
		options = append(options, mount.Option{Key: "prjquota"})
	}
	return mount.New(s.fstype, dir, options...)
}

// needKernel skips the test if the kernel cannot mount such a file system with project quotas, which it says by EINVAL, while it can
// mount one without. Whatever else fails is a failure.
func (s projectSuite) needKernel(t *testing.T) {
	t.Helper()
	e := NewEnvironment(t)
	require.NoError(t, os.Mkdir(e.Dir, 0o755)) //nolint:gosec // as elsewhere
	s.make(t, e.Dir+".plain", false)
	require.NoError(t, s.mount(t, e.Dir+".plain", e.Dir, false))
	require.NoError(t, mount.Detach(e.Dir))
	s.make(t, e.Dir+".quota", true)
	err := s.mount(t, e.Dir+".quota", e.Dir, true)
	if errors.Is(err, unix.EINVAL) {
		t.Skipf("not run: this kernel has no project quotas for %s: it mounts one without, and not with: %v", s.fstype, err)
	}
	require.NoError(t, err)
	require.NoError(t, mount.Detach(e.Dir))
}

// fileSystem mounts one with project quotas at dir. With the test it goes, and then no limit may be left in it.
func (s projectSuite) fileSystem(t testing.TB, dir string) {
	t.Helper()
	s.make(t, dir+".img", true)
	require.NoError(t, s.mount(t, dir+".img", dir, true))
	require.NoError(t, os.Chmod(dir, 0o755)) //nolint:gosec // guests pass through it
	t.Cleanup(func() {
		defer func() { require.NoError(t, mount.Detach(dir)) }()
		s.noLimits(t, dir)
	})
}

// noLimits: the limits go with what was discarded.
func (s projectSuite) noLimits(t testing.TB, dir string) {
	t.Helper()
	b, err := s.open(dir, pool.FileOptions{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- b.(storage.Runner).Run(ctx) }()
	require.Eventually(t, func() bool {
		left, err := os.ReadDir(filepath.Join(dir, ".trash"))
		return err == nil && len(left) == 0
	}, 2*time.Minute, 10*time.Millisecond, "what was discarded goes")
	cancel()
	require.NoError(t, <-done)
	require.Empty(t, limits(t, dir), "limits left")
}

// powerCut: no limit is left of a root disk that a host which loses its power has not, and none is without one.
func (s projectSuite) powerCut(t *testing.T, e Environment, name string) {
	t.Helper()
	host := filepath.Join(filepath.Dir(e.Dir), "host")
	require.NoError(t, os.Mkdir(host, 0o755)) //nolint:gosec // guests pass through it
	s.make(t, host+".img", true)
	start := func() { require.NoError(t, s.mount(t, host+".img", host, true)) }
	start()
	require.NoError(t, os.Chmod(host, 0o755)) //nolint:gosec // as above
	cut := func() {
		const shutdown, noLogFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
		d, err := os.Open(host)
		require.NoError(t, err)
		defer d.Close() //nolint:errcheck // nothing was written
		require.NoError(t, unix.IoctlSetPointerInt(int(d.Fd()), shutdown, noLogFlush))
	}
	on := suite{s.subject(), name}
	on.cutPower(t, e, host, start, cut)
	e.Dir = filepath.Join(host, "roots")
	on.restarted(t, e)
	s.noLimits(t, e.Dir)
}

func (s projectSuite) subject() Subject {
	return Subject{
		Open:       func(dir string) (storage.Backend, error) { return s.open(dir, pool.FileOptions{ProjectQuota: true}) },
		FileSystem: s.fileSystem,
		Full:       projectFileSystems[s.fstype].full,
	}
}

// limits are the projects with a limit.
func limits(t testing.TB, dir string) []string {
	t.Helper()
	const getNext, projects = 0x800009, 2 // Q_GETNEXTQUOTA, PRJQUOTA
	d, err := os.Open(dir)
	require.NoError(t, err)
	defer d.Close() //nolint:errcheck // only read
	var found []string
	for next := uint32(0); ; {
		var q struct { // struct if_nextdqblk
			hardBlocks, softBlocks, bytes, hardInodes, softInodes, inodes uint64
			_                                                             [2]uint64
			_, id                                                         uint32
		}
		_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, d.Fd(), getNext<<8|projects, uintptr(next), uintptr(unsafe.Pointer(&q)), 0, 0) //nolint:gosec // the kernel wants an address
		if errors.Is(errno, unix.ENOENT) || errors.Is(errno, unix.ESRCH) {
			return found
		}
		require.Zero(t, errno)
		if q.hardBlocks > 0 || q.hardInodes > 0 {
			found = append(found, fmt.Sprintf("%d: %d KiB, %d inodes", q.id, q.hardBlocks, q.hardInodes))
		}
		next = q.id + 1
	}
}

// bothKinds: root disks in files and with quotas live side by side, whichever are made now.
func (s projectSuite) bothKinds(t *testing.T, e Environment) {
	require.Empty(t, limits(t, e.Dir))
	for n, quota := range []bool{true, false} {
		b, err := s.open(e.Dir, pool.FileOptions{ProjectQuota: quota})
		require.NoError(t, err)
		require.NoError(t, b.Create(t.Context(), root(e, fmt.Sprintf("i%d", n), uint32(n), 1)))
	}
	require.FileExists(t, filepath.Join(e.Dir, "i1", pool.DiskFile))
	require.NoFileExists(t, filepath.Join(e.Dir, "i0", pool.DiskFile))
	require.Len(t, limits(t, e.Dir), 1)
	for _, quota := range []bool{true, false} {
		b, err := s.open(e.Dir, pool.FileOptions{ProjectQuota: quota})
		require.NoError(t, err)
		for n := range uint32(2) {
			r := root(e, fmt.Sprintf("i%d", n), n, 1)
			path, err := b.Mount(t.Context(), r)
			require.NoError(t, err)
			require.InDelta(t, 1<<30, size(t, path), 0.06*(1<<30))
			require.FileExists(t, filepath.Join(path, "etc/hostname"))
			devices, err := b.(storage.Devicer).Devices(t.Context(), r.InstanceID)
			require.NoError(t, err)
			require.Len(t, devices, 1)
			require.Equal(t, n == 1, devices[0].Own, "who has a directory shares the pool's disk")
			require.NoError(t, b.Unmount(t.Context(), r.InstanceID))
		}
	}
	b, err := s.open(e.Dir, pool.FileOptions{})
	require.NoError(t, err)
	for _, id := range []string{"i0", "i1"} {
		require.NoError(t, b.Delete(t.Context(), id))
	}
}

// copyOfChanges: a copy lacks what was removed from the image, and has what was moved.
func (s projectSuite) copyOfChanges(t *testing.T, e Environment) {
	b, err := s.open(e.Dir, pool.FileOptions{ProjectQuota: true})
	require.NoError(t, err)
	path := up(t, b, root(e, "a", 0, 1))
	require.NoError(t, os.Remove(filepath.Join(path, "bin/su")))
	require.NoError(t, os.Remove(filepath.Join(path, "bin/ping")))
	require.NoError(t, os.Rename(filepath.Join(path, "home"), filepath.Join(path, "users")))
	to := root(e, "a.snapshot", 0, 1)
	require.NoError(t, b.(storage.Copier).Copy(t.Context(), "a", to))
	copied, err := b.Mount(t.Context(), to)
	require.NoError(t, err)
	for _, gone := range []string{"bin/su", "bin/ping", "home"} {
		require.NoFileExists(t, filepath.Join(copied, gone))
		require.NoDirExists(t, filepath.Join(copied, gone))
	}
	require.Equal(t, ids(0).Base+1000, stat(t, filepath.Join(copied, "users/user/file")).Uid)
	require.InDelta(t, 1<<30, size(t, copied), 1<<20)
	require.NoError(t, b.Delete(t.Context(), to.InstanceID))
}

// inGuest: a guest's root neither writes beyond the quota nor leaves the project.
func (s projectSuite) inGuest(t *testing.T, e Environment) {
	b, err := s.open(e.Dir, pool.FileOptions{ProjectQuota: true})
	require.NoError(t, err)
	path := up(t, b, root(e, "a", 0, 1))
	sh := func(script string) string {
		out, _ := inGuest(t, ids(0), "/bin/sh", "-c", "cd "+path+" && exec 2>&1; "+script)
		return strings.TrimSpace(out)
	}
	require.Empty(t, sh("mkdir d && echo x > d/f && df -k . | tail -1 | { read dev blocks rest; test $blocks = 1048576 || echo $dev $blocks $rest; }"))
	before := sh("lsattr -p -d . d; lsattr -p d/f")
	require.Regexp(t, `(?m)^ *[12][0-9]{9} \S*P\S* d$`, before, "the project is inherited")
	for _, attempt := range []string{"chattr -p 0 d/f", "chattr -p 7 d", "chattr -P d", "chattr -P ."} {
		require.NotEqual(t, "done", sh(attempt+" && echo done"), attempt)
	}
	require.Equal(t, before, sh("lsattr -p -d . d; lsattr -p d/f"))
	require.Contains(t, sh("dd if=/dev/zero of=large bs=1M count=1100; rm large"), s.fullText())
	require.Equal(t, "fits", sh("dd if=/dev/zero of=large bs=1M count=900 2>/dev/null && echo fits"))
}

func (s projectSuite) fullText() string {
	if projectFileSystems[s.fstype].full == unix.EDQUOT {
		return "Disk quota exceeded"
	}
	return "No space left on device"
}

// inodes: a guest cannot make more files than its disk's size allows.
func (s projectSuite) inodes(t *testing.T, e Environment) {
	b, err := s.open(e.Dir, pool.FileOptions{ProjectQuota: true, InodesPerGB: 2000})
	require.NoError(t, err)
	path := up(t, b, root(e, "a", 0, 1))
	fill := func() (files int, err error) {
		likeGuest(t, func() {
			for ; files < 5000 && err == nil; files++ {
				err = os.WriteFile(filepath.Join(path, "tmp", rand.Text()), nil, 0o600)
			}
		})
		return files, err
	}
	files, err := fill()
	require.ErrorIs(t, err, projectFileSystems[s.fstype].full)
	require.InDelta(t, 2000, files, 100)
	require.NoError(t, b.Grow(t.Context(), "a", 2))
	files, err = fill()
	require.ErrorIs(t, err, projectFileSystems[s.fstype].full)
	require.InDelta(t, 2000, files, 100, "they grow with the disk")
}

// tooSmall: an image that is larger than the root disk is refused, if it is copied, and leaves nothing.
func (s projectSuite) tooSmall(t *testing.T, e Environment) {
	b, err := s.open(e.Dir, pool.FileOptions{ProjectQuota: true})
	require.NoError(t, err)
	_, err = write(t, filepath.Join(e.Image, "large"), 1100)
	require.NoError(t, err)
	err = b.Create(t.Context(), root(e, "a", 0, 1))
	if b.Name() == "overlay" { // it is below the root disk
		require.NoError(t, err)
		require.NoError(t, b.Delete(t.Context(), "a"))
		return
	}
	require.ErrorIs(t, err, storage.ErrNoSpace)
	list, err := b.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, list)
}

// lost: a root disk that nothing bounds any more is not mounted, and can be deleted.
func (s projectSuite) lost(t *testing.T, e Environment) {
	b, err := s.open(e.Dir, pool.FileOptions{ProjectQuota: true})
	require.NoError(t, err)
	r := root(e, "a", 0, 1)
	require.NoError(t, b.Create(t.Context(), r))
	bounded := filepath.Join(e.Dir, "a", "bounded")
	require.NoError(t, os.Rename(bounded, bounded+".old"))
	require.NoError(t, exec.CommandContext(t.Context(), "cp", "-a", bounded+".old", bounded).Run())
	_, err = b.Mount(t.Context(), r)
	require.ErrorContains(t, err, "has lost its project")
	require.NoError(t, os.RemoveAll(bounded))
	require.NoError(t, os.Rename(bounded+".old", bounded))
	require.NoError(t, b.Delete(t.Context(), "a"))
}

// shrink: a root disk becomes smaller if what is in it fits.
func (s projectSuite) shrink(t *testing.T, e Environment) {
	b, err := s.open(e.Dir, pool.FileOptions{ProjectQuota: true})
	require.NoError(t, err)
	shrinker := b.(storage.Shrinker)
	path := up(t, b, root(e, "a", 0, 2))
	_, err = writeUntilFull(t, filepath.Join(path, "large"), 1100)
	require.NoError(t, err)
	require.ErrorIs(t, shrinker.Shrink(t.Context(), "a", 1), storage.ErrTooSmall)
	require.InDelta(t, 2<<30, size(t, path), 1<<20)
	require.NoError(t, os.Remove(filepath.Join(path, "large")))
	require.Eventually(t, func() bool { return shrinker.Shrink(t.Context(), "a", 1) == nil }, 30*time.Second, 50*time.Millisecond)
	require.InDelta(t, 1<<30, size(t, path), 1<<20)
}
