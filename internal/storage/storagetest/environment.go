package storagetest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/functest"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// Environment is where a suite works.
type Environment struct {
	Dir   string // of the back end, on a file system that it supports; passable for others
	Image string // a tree made by MakeImage
}

// NewEnvironment makes an empty directory for a back end, and an image. Both are
// removed with the test, which fails when a mount or loop device is left.
func NewEnvironment(t testing.TB) Environment {
	t.Helper()
	functest.Need(t, os.Geteuid() == 0, "root")
	base, err := os.MkdirTemp("/var/tmp", "storagetest-") //nolint:usetesting // on a disk, and guests pass through its parents
	require.NoError(t, err)
	require.NoError(t, os.Chmod(base, 0o755)) //nolint:gosec // guests pass through it
	t.Cleanup(func() {
		left := Leftovers(t, base)
		for m := range strings.FieldsSeq(left.Mounts) {
			_ = mount.Detach(m)
		}
		require.Zero(t, left, "left on the host")
		require.NoError(t, os.RemoveAll(base))
	})
	e := Environment{Dir: filepath.Join(base, "roots"), Image: filepath.Join(base, "image")}
	MakeImage(t, e.Image)
	return e
}

// Left is what a test has not cleaned up.
type Left struct {
	Mounts string // mount points, one a line
	Loops  string // loop devices
}

// Leftovers looks for mounts below dir and loop devices of files below it.
func Leftovers(t testing.TB, dir string) Left {
	t.Helper()
	var left Left
	for _, point := range mountsBelow(t, dir) {
		left.Mounts += point + "\n"
	}
	if foreign(dir) {
		t.Log("another program has copied these mounts into a namespace of its own; loop devices are not counted")
		return left
	}
	// The kernel releases a loop device a moment after its last user has gone, later if it has many files to forget or to write.
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for range 5000 {
		left.Loops = ""
		files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		require.NoError(t, err)
		for _, f := range files {
			if name, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(name), dir) {
				left.Loops += f + ": " + string(name)
			}
		}
		if left.Loops == "" || left.Mounts != "" { // what is mounted is not released
			break
		}
		<-again.C
	}
	return left
}

// mountsBelow are the mount points below dir, in the order in which they were mounted.
func mountsBelow(t testing.TB, dir string) []string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	var points []string
	for line := range strings.Lines(string(table)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, dir) {
			points = append(points, point)
		}
	}
	return points
}

// foreign tells whether another mount namespace has a mount below dir.
func foreign(dir string) bool {
	tables, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, table := range tables {
		if text, err := os.ReadFile(table); err == nil && bytes.Contains(text, []byte(" "+dir+"/")) {
			return true
		}
	}
	return false
}

// MakeImage makes a small tree with everything that is easily lost: owners, setuid,
// links, holes, an access list and file capabilities.
func MakeImage(t testing.TB, dir string) {
	t.Helper()
	for _, d := range []string{"", "etc", "bin", "home/user", "tmp"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, d), 0o755)) //nolint:gosec // as in an image
	}
	write := func(name, content string, mode uint32, uid int) {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		require.NoError(t, os.Chown(path, uid, uid))
		require.NoError(t, unix.Chmod(path, mode))
	}
	write("etc/hostname", "image\n", 0o644, 0)
	write("bin/su", "setuid\n", 0o4755, 0)
	write("bin/ping", "capable\n", 0o755, 0)
	write("home/user/file", "mine\n", 0o600, 1000)
	require.NoError(t, os.Chown(filepath.Join(dir, "home/user"), 1000, 1000))
	require.NoError(t, unix.Chmod(filepath.Join(dir, "tmp"), 0o1777))
	require.NoError(t, os.Link(filepath.Join(dir, "etc/hostname"), filepath.Join(dir, "etc/hostname.link")))
	require.NoError(t, os.Symlink("/etc/shadow", filepath.Join(dir, "etc/absolute")))
	require.NoError(t, os.Truncate(filepath.Join(dir, "bin/su"), 8<<20))
	require.NoError(t, unix.Chmod(filepath.Join(dir, "bin/su"), 0o4755))
	require.NoError(t, unix.Setxattr(filepath.Join(dir, "bin/ping"), "security.capability", netRaw, 0))
	acl := []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe9\x03\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff") // user 1001 may read
	require.NoError(t, unix.Setxattr(filepath.Join(dir, "home/user/file"), "system.posix_acl_access", acl, 0))
	when := time.Unix(1_700_000_000, 0)
	require.NoError(t, os.Chtimes(filepath.Join(dir, "etc/hostname"), when, when))
}

// netRaw is cap_net_raw=ep as revision 2.
var netRaw = []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
