// Package storagetest is one suite for every storage back end. It needs root and
// makes mounts; run it under the build tag functional.
package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// Subject is a back end to be tested.
type Subject struct {
	// Open opens the back end in a directory; it is called again where a test needs a restart of the agent.
	Open func(dir string) (storage.Backend, error)
	// FileSystem mounts at the directory what the back end needs there, and takes it away with the
	// test; nil: any file system will do.
	FileSystem func(t testing.TB, dir string)
	// Full is what a guest gets that writes beyond its root disk; 0: ENOSPC.
	Full unix.Errno
}

// Run runs the suite.
func Run(t *testing.T, s Subject) {
	t.Helper()
	if s.Full == 0 {
		s.Full = unix.ENOSPC
	}
	if directories := os.Getenv(childVariable); directories != "" {
		suite{s, ""}.child(t, directories)
	}
	run(t, suite{s, t.Name()})
}

func run(t *testing.T, s suite) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(*testing.T, Environment, storage.Backend)
		own  bool // makes a file system of its own: for back ends that do with any
	}{
		{"tree", s.tree, false},
		{"two ranges", s.twoRanges, false},
		{"guest", s.guest, false},
		{"quota", s.quota, false},
		{"grow", s.grow, false},
		{"no quota", s.noQuota, false},
		{"second disk", s.secondDisk, false},
		{"copy", s.copy, false},
		{"repeat", s.repeat, false},
		{"keeps changes", s.keepsChanges, false},
		{"busy", s.busy, false},
		{"delete is fast", s.deleteIsFast, false},
		{"refuses", s.refuses, false},
		{"cancelled create", s.cancelledCreate, false},
		{"restart", s.restart, false},
		{"parallel", s.parallel, false},
		{"full host", s.fullHost, true},
		{"next tenant", s.nextTenant, true},
		{"killed", s.killed, false},
		{"power cut", s.powerCut, true},
	} {
		if test.own && s.FileSystem != nil {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			e := NewEnvironment(t)
			if s.FileSystem != nil {
				require.NoError(t, os.Mkdir(e.Dir, 0o755)) //nolint:gosec // guests pass through it
				s.FileSystem(t, e.Dir)
			}
			b, err := s.Open(e.Dir)
			require.NoError(t, err)
			test.run(t, e, b)
		})
	}
}

type suite struct {
	Subject
	name string // of the test that called Run
}

// ids is a range of its own for each n.
func ids(n uint32) storage.IDRange { return storage.IDRange{Base: 2_000_000 + n*65536, Size: 65536} }

func root(e Environment, name string, n uint32, sizeGB int) storage.Root {
	return storage.Root{InstanceID: name, ImagePath: e.Image, SizeGB: sizeGB, IDs: ids(n)}
}

// up creates and mounts, and deletes with the test.
func up(t *testing.T, b storage.Backend, r storage.Root) string {
	t.Helper()
	require.NoError(t, b.Create(t.Context(), r))
	t.Cleanup(func() { require.NoError(t, b.Delete(context.WithoutCancel(t.Context()), r.InstanceID)) })
	path, err := b.Mount(t.Context(), r)
	require.NoError(t, err)
	return path
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	return st
}

func (suite) tree(t *testing.T, e Environment, b storage.Backend) {
	path := up(t, b, root(e, "a", 0, 1))
	base := ids(0).Base
	for name, want := range map[string]struct {
		mode, uid uint32
	}{
		"":                  {unix.S_IFDIR | 0o755, base},
		"etc/hostname":      {unix.S_IFREG | 0o644, base},
		"etc/absolute":      {unix.S_IFLNK | 0o777, base},
		"bin/su":            {unix.S_IFREG | 0o4755, base},
		"tmp":               {unix.S_IFDIR | 0o1777, base},
		"home/user":         {unix.S_IFDIR | 0o755, base + 1000},
		"home/user/file":    {unix.S_IFREG | 0o640, base + 1000}, // 4 of the access list's mask
		"etc/hostname.link": {unix.S_IFREG | 0o644, base},
	} {
		st := stat(t, filepath.Join(path, name))
		require.Equal(t, want.mode, st.Mode, name)
		require.Equal(t, want.uid, st.Uid, name)
		require.Equal(t, want.uid, st.Gid, name)
	}
	require.EqualValues(t, 1_700_000_000, stat(t, filepath.Join(path, "etc/hostname")).Mtim.Sec)
	require.Equal(t, stat(t, filepath.Join(path, "etc/hostname")).Ino, stat(t, filepath.Join(path, "etc/hostname.link")).Ino)
	require.Less(t, stat(t, filepath.Join(path, "bin/su")).Blocks, int64(64), "the hole is kept")
	acl := make([]byte, 64)
	n, err := unix.Getxattr(filepath.Join(path, "home/user/file"), "system.posix_acl_access", acl)
	require.NoError(t, err)
	require.Equal(t, 44, n)
	require.Equal(t, base+1001, uint32(acl[16])|uint32(acl[17])<<8|uint32(acl[18])<<16|uint32(acl[19])<<24)
}

func (suite) twoRanges(t *testing.T, e Environment, b storage.Backend) {
	one, two := up(t, b, root(e, "one", 1, 1)), up(t, b, root(e, "two", 2, 1))
	require.Equal(t, ids(1).Base, stat(t, filepath.Join(one, "etc/hostname")).Uid)
	require.Equal(t, ids(2).Base, stat(t, filepath.Join(two, "etc/hostname")).Uid)
	require.NoError(t, os.WriteFile(filepath.Join(one, "etc/hostname"), []byte("one\n"), 0o600))
	got, err := os.ReadFile(filepath.Join(two, "etc/hostname"))
	require.NoError(t, err)
	require.Equal(t, "image\n", string(got), "instances share nothing that they write")
	image, err := os.ReadFile(filepath.Join(e.Image, "etc/hostname"))
	require.NoError(t, err)
	require.Equal(t, "image\n", string(image))
}

// inGuest runs a program with the ids of a guest's root.
func inGuest(t *testing.T, r storage.IDRange, args ...string) (string, error) {
	t.Helper()
	maps := []syscall.SysProcIDMap{{HostID: int(r.Base), Size: int(r.Size)}}
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: maps, GidMappings: maps, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{},
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (suite) guest(t *testing.T, e Environment, b storage.Backend) {
	path := up(t, b, root(e, "a", 3, 1))
	// Its root may do all that a root does in its tree, and nothing in another's.
	out, err := inGuest(t, ids(3), "/bin/sh", "-c", "cd "+path+" && stat -c %u etc/hostname home/user && "+
		"echo x > new && chown 1000:1000 new etc/hostname && chmod 4755 etc/hostname && mv home/user home/renamed && rm bin/su && mkfifo pipe")
	require.NoError(t, err, out)
	require.Equal(t, "0\n1000\n", out)
	require.Equal(t, ids(3).Base+1000, stat(t, filepath.Join(path, "new")).Uid)
	out, err = inGuest(t, ids(4), "/bin/sh", "-c", "echo x > "+filepath.Join(path, "bad"))
	require.Error(t, err, out)
	// The kernel shows capabilities as revision 2 to those for whom they are in force.
	capability := make([]byte, 64)
	if getcap, err := exec.LookPath("getcap"); err == nil {
		out, err = inGuest(t, ids(3), getcap, filepath.Join(path, "bin/ping"))
		require.NoError(t, err, out)
		require.Contains(t, out, "cap_net_raw=ep")
		require.NotContains(t, out, "rootid")
	}
	_, err = unix.Getxattr(filepath.Join(path, "bin/ping"), "security.capability", capability)
	require.NoError(t, err)
}

// size is what df shows.
func size(t *testing.T, path string) float64 {
	t.Helper()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(path, &st))
	return float64(st.Blocks) * float64(st.Bsize)
}

// likeGuest runs do without a capability that no guest's root has of the host, and with which ext4 sets no bound by quotas.
func likeGuest(t *testing.T, do func()) {
	t.Helper()
	runtime.LockOSThread() // capabilities are a thread's
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	require.NoError(t, unix.Capget(&header, &have[0]))
	less := have
	less[unix.CAP_SYS_RESOURCE/32].Effective &^= 1 << (unix.CAP_SYS_RESOURCE % 32)
	require.NoError(t, unix.Capset(&header, &less[0]))
	do()
	require.NoError(t, unix.Capset(&header, &have[0]))
}

// writeUntilFull writes at most limit MiB to a file and tells how many fit.
func writeUntilFull(t *testing.T, path string, limit int) (written int, err error) {
	t.Helper()
	likeGuest(t, func() { written, err = write(t, path, limit) })
	return written, err
}

func write(t *testing.T, path string, limit int) (int, error) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	defer file.Close() //nolint:errcheck // the disk may be full
	chunk := bytes.Repeat([]byte{1}, 1<<20)
	for written := range limit {
		if _, err = file.Write(chunk); err != nil {
			return written, err
		}
	}
	return limit, file.Sync()
}

func (s suite) quota(t *testing.T, e Environment, b storage.Backend) {
	path := up(t, b, root(e, "a", 0, 1))
	require.InDelta(t, 1<<30, size(t, path), 0.06*(1<<30), "df shows the flavor's size")
	// Another size of the same image is no other image's, and nobody's size but its own.
	require.InDelta(t, 3<<30, size(t, up(t, b, root(e, "larger", 1, 3))), 0.06*(3<<30))
	require.InDelta(t, 2<<30, size(t, up(t, b, root(e, "between", 2, 2))), 0.06*(2<<30))
	written, err := writeUntilFull(t, filepath.Join(path, "large"), 1100)
	require.ErrorIs(t, err, s.Full)
	require.Greater(t, written, 900)
}

// capable tells whether this process has a capability.
func capable(capability uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[capability/32].Effective&(1<<(capability%32)) != 0
}

func (s suite) grow(t *testing.T, e Environment, b storage.Backend) {
	require.ErrorIs(t, b.Grow(t.Context(), "a", 2), storage.ErrNotFound)
	r := root(e, "a", 0, 1)
	path := up(t, b, r)
	written, err := writeUntilFull(t, filepath.Join(path, "large"), 1100)
	require.ErrorIs(t, err, s.Full)
	if err := b.Grow(t.Context(), "a", 2); err != nil && !capable(unix.CAP_SYS_RESOURCE) {
		require.ErrorIs(t, err, storage.ErrBusy)
		require.ErrorContains(t, err, "CAP_SYS_RESOURCE")
		t.Log("this process has no CAP_SYS_RESOURCE: the disk grows with its next mount")
		require.NoError(t, b.Unmount(t.Context(), "a"))
		_, err = b.Mount(t.Context(), r)
		require.NoError(t, err)
	} else {
		require.NoError(t, err, "while it is in use")
	}
	require.NoError(t, b.Grow(t.Context(), "a", 2))
	require.InDelta(t, 2<<30, size(t, path), 0.06*(2<<30))
	more, err := writeUntilFull(t, filepath.Join(path, "large"), 1100)
	require.ErrorIs(t, err, s.Full)
	require.InDelta(t, 2*written, written+more, 0.1*float64(2*written))
	require.ErrorIs(t, b.Grow(t.Context(), "a", 1), storage.ErrUnsupported, "disks do not shrink")

	require.NoError(t, b.Unmount(t.Context(), "a"))
	require.NoError(t, b.Grow(t.Context(), "a", 3), "while it is not")
	r.SizeGB = 3
	require.NoError(t, b.Create(t.Context(), r), "that is the disk's size now")
	path, err = b.Mount(t.Context(), r)
	require.NoError(t, err)
	require.InDelta(t, 3<<30, size(t, path), 0.06*(3<<30))
	_, err = writeUntilFull(t, filepath.Join(path, "large"), 700)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(path, "etc/hostname"))
}

// secondDisk: an instance may have two disks, and they have nothing in common.
func (suite) secondDisk(t *testing.T, e Environment, b storage.Backend) {
	one, two := up(t, b, root(e, "a", 0, 1)), up(t, b, root(e, "a.rescue", 0, 1))
	require.NotEqual(t, one, two)
	require.NoError(t, os.WriteFile(filepath.Join(two, "etc/hostname"), []byte("rescue\n"), 0o600))
	list, err := b.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"a", "a.rescue"}, list)
	require.Equal(t, "a", storage.Owner("a.rescue"))
	require.NoError(t, b.Delete(t.Context(), "a.rescue"))
	got, err := os.ReadFile(filepath.Join(one, "etc/hostname"))
	require.NoError(t, err)
	require.Equal(t, "image\n", string(got))
}

func (suite) noQuota(t *testing.T, e Environment, b storage.Backend) {
	path := up(t, b, root(e, "a", 0, 0))
	var guest, host unix.Statfs_t
	require.NoError(t, unix.Statfs(path, &guest))
	require.NoError(t, unix.Statfs(e.Dir, &host))
	require.Equal(t, host.Blocks, guest.Blocks)
	require.NoError(t, os.WriteFile(filepath.Join(path, "new"), []byte("x"), 0o600))
	u, err := b.Usage(t.Context())
	require.NoError(t, err)
	require.Equal(t, host.Blocks*uint64(host.Bsize), u.Total) //nolint:gosec // positive
	require.Positive(t, u.Free)
}

func (suite) repeat(t *testing.T, e Environment, b storage.Backend) {
	r := root(e, "a", 0, 1)
	require.NoError(t, b.Unmount(t.Context(), "a"), "of what never existed")
	require.NoError(t, b.Delete(t.Context(), "a"), "of what never existed")
	_, err := b.Mount(t.Context(), r)
	require.ErrorIs(t, err, storage.ErrNotFound)
	path := up(t, b, r)
	require.NoError(t, b.Create(t.Context(), r))
	again, err := b.Mount(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, path, again)
	other := r
	other.IDs = ids(5)
	require.Error(t, b.Create(t.Context(), other), "another root disk under the same name")
	list, err := b.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, list)
	require.NoError(t, b.Unmount(t.Context(), "a"))
	require.NoError(t, b.Unmount(t.Context(), "a"))
	require.NoError(t, b.Delete(t.Context(), "a"))
	require.NoError(t, b.Delete(t.Context(), "a"))
	list, err = b.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, list)
}

func (s suite) keepsChanges(t *testing.T, e Environment, b storage.Backend) {
	r := root(e, "a", 0, 1)
	path := up(t, b, r)
	require.NoError(t, os.WriteFile(filepath.Join(path, "etc/hostname"), []byte("changed\n"), 0o600))
	require.NoError(t, os.Remove(filepath.Join(path, "bin/su")))
	require.NoError(t, os.Rename(filepath.Join(path, "home"), filepath.Join(path, "users")))
	require.NoError(t, b.Unmount(t.Context(), "a"))
	// The agent may be another one by now, and the host rebooted.
	b, err := s.Open(e.Dir)
	require.NoError(t, err)
	path, err = b.Mount(t.Context(), r)
	require.NoError(t, err)
	got, err := os.ReadFile(filepath.Join(path, "etc/hostname"))
	require.NoError(t, err)
	require.Equal(t, "changed\n", string(got))
	require.NoFileExists(t, filepath.Join(path, "bin/su"))
	require.FileExists(t, filepath.Join(path, "users/user/file"))
}

func (suite) busy(t *testing.T, e Environment, b storage.Backend) {
	path := up(t, b, root(e, "a", 0, 1))
	file, err := os.Open(filepath.Join(path, "etc/hostname"))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, b.Unmount(ctx, "a"), storage.ErrBusy)
	require.ErrorIs(t, b.Delete(ctx, "a"), storage.ErrBusy, "the caller's deadline has passed")
	list, err := b.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, list)
	time.AfterFunc(100*time.Millisecond, func() { _ = file.Close() })
	require.NoError(t, b.Unmount(t.Context(), "a"), "it waits for the last user")
}

func (suite) deleteIsFast(t *testing.T, e Environment, b storage.Backend) {
	const soon = time.Second // to write it out takes longer on most disks
	fastest := time.Hour
	for try := 0; try < 3 && fastest >= soon; try++ { // whatever else the machine does makes it slower, though not each time
		path := up(t, b, root(e, "a", 0, 2))
		file, err := os.Create(filepath.Join(path, "large"))
		require.NoError(t, err)
		chunk := bytes.Repeat([]byte{1}, 1<<20)
		for range 700 {
			_, err = file.Write(chunk)
			require.NoError(t, err)
		}
		require.NoError(t, file.Close())
		start := time.Now()
		require.NoError(t, b.Delete(t.Context(), "a"))
		elapsed := time.Since(start)
		t.Logf("deleted with 700 MiB in %s", elapsed)
		fastest = min(fastest, elapsed)
		runUntilEmpty(t, b, e)
	}
	require.Less(t, fastest, soon)
}

func (suite) refuses(t *testing.T, e Environment, b storage.Backend) {
	for name, change := range map[string]func(*storage.Root){
		"hidden id":      func(r *storage.Root) { r.InstanceID = ".new" },
		"two words":      func(r *storage.Root) { r.InstanceID = "a.b.c" },
		"path as id":     func(r *storage.Root) { r.InstanceID = "../x" },
		"no id":          func(r *storage.Root) { r.InstanceID = "" },
		"relative image": func(r *storage.Root) { r.ImagePath = "image" },
		"no image":       func(r *storage.Root) { r.ImagePath = "/does/not/exist" },
		"root's ids":     func(r *storage.Root) { r.IDs.Base = 0 },
		"wrapping ids":   func(r *storage.Root) { r.IDs.Base = 1<<32 - 10 },
		"negative size":  func(r *storage.Root) { r.SizeGB = -1 },
	} {
		r := root(e, "a", 0, 1)
		change(&r)
		require.Error(t, b.Create(t.Context(), r), name)
	}
	require.Error(t, b.Delete(t.Context(), "../image"))
	require.Error(t, b.Unmount(t.Context(), "../image"))
	list, err := b.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, list, "nothing is left of what failed")
	half, err := os.ReadDir(filepath.Join(e.Dir, ".new"))
	require.NoError(t, err)
	require.Empty(t, half)
}

func (suite) cancelledCreate(t *testing.T, e Environment, b storage.Backend) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the caller has left"))
	require.Error(t, b.Create(ctx, root(e, "a", 0, 1)))
	list, err := b.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, list)
	up(t, b, root(e, "a", 0, 1))
}

func (s suite) restart(t *testing.T, e Environment, b storage.Backend) {
	path := up(t, b, root(e, "a", 0, 1))
	// What a crash may leave: a directory half made, with something mounted in it.
	half := filepath.Join(e.Dir, ".new", "b", "rootfs")
	require.NoError(t, os.MkdirAll(half, 0o711)) //nolint:gosec // as the back end makes it
	require.NoError(t, mount.New("tmpfs", half))
	b, err := s.Open(e.Dir)
	require.NoError(t, err)
	mounted, err := mount.Is(path)
	require.NoError(t, err)
	require.True(t, mounted, "a restart leaves root disks mounted")
	list, err := b.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, list)
	up(t, b, root(e, "b", 1, 1))
}

func (suite) parallel(t *testing.T, e Environment, b storage.Backend) {
	const n = 8
	errs := make(chan error, n)
	for i := range uint32(n) {
		go func() {
			r := root(e, fmt.Sprintf("i%d", i), i, 1)
			err := b.Create(t.Context(), r)
			if err == nil {
				_, err = b.Mount(t.Context(), r)
			}
			if err == nil {
				err = b.Delete(t.Context(), r.InstanceID)
			}
			errs <- err
		}()
	}
	for range n {
		require.NoError(t, <-errs)
	}
}
