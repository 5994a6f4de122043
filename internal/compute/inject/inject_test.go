package inject

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/guestfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ids = guestfile.IDs{Base: 700_000, Count: 65536}

const key = "ssh-ed25519 AAAA me\n"

// disk makes a root disk of a guest's with ids of its own; secret is the host's.
func disk(t *testing.T) (rootfs, secret string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners of files")
	}
	base := t.TempDir()
	rootfs, secret = filepath.Join(base, "rootfs"), filepath.Join(base, "host")
	require.NoError(t, os.MkdirAll(secret, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(secret, "authorized_keys"), []byte("the host's"), 0o600))
	for name, text := range map[string]string{"etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/shadow": "root:*:1::::::\n", "etc/motd": "old"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(rootfs, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(rootfs, name), []byte(text), 0o640))
	}
	give(t, rootfs)
	require.NoError(t, os.Chown(filepath.Join(rootfs, "etc/motd"), int(ids.Base)+5, int(ids.Base)+6))
	return rootfs, secret
}

// give makes all of a disk the guest's root's.
func give(t *testing.T, rootfs string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(rootfs, func(path string, _ fs.DirEntry, err error) error {
		require.NoError(t, err)
		return os.Lchown(path, int(ids.Base), int(ids.Base))
	}))
}

// what tells of a file on a disk: owner and group as the guest counts, mode, content.
func what(t *testing.T, elements ...string) string {
	t.Helper()
	file := filepath.Join(elements...)
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(file, &st))
	text := fmt.Sprintf("%d:%d %o", int64(st.Uid)-int64(ids.Base), int64(st.Gid)-int64(ids.Base), st.Mode&0o7777)
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return text
	}
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return text + " " + string(b)
}

func TestInto(t *testing.T) {
	t.Parallel()
	rootfs, _ := disk(t)
	content := Content{
		Key: key, Metadata: map[string]string{"role": "<web>", "a": "1"}, User: "root", Password: "s3cret",
		Files: []File{{"/etc/motd", []byte("hi\n")}, {"srv/a/b/c", []byte{0, 1}}, {"../../up", nil}, {"/etc/new", []byte("n")}},
	}
	for range 2 { // the second time nothing changes
		warnings, err := Into(t.Context(), rootfs, ids, content)
		require.NoError(t, err)
		require.Empty(t, warnings)
		for name, want := range map[string]string{
			"root": "0:0 700", "root/.ssh": "0:0 700", "root/.ssh/authorized_keys": "0:0 600 " + keyComment + "\n" + key,
			"meta.js": "0:0 644 {\"a\":\"1\",\"role\":\"\\u003cweb\\u003e\"}", "etc/motd": "5:6 640 hi\n", "etc/new": "0:0 644 n",
			"srv": "0:0 755", "srv/a": "0:0 755", "srv/a/b": "0:0 744", "srv/a/b/c": "0:0 644 \x00\x01", "up": "0:0 644 ",
		} {
			require.Equal(t, want, what(t, rootfs, name), name)
		}
		require.Regexp(t, `^0:0 640 root:\$6\$[^:]+:\d{5}::::::\n$`, what(t, rootfs, "etc/shadow"))
	}
}

func TestNothing(t *testing.T) {
	t.Parallel()
	warnings, err := Into(t.Context(), "/no/such/disk", ids, Content{Key: "\n", User: "root", Metadata: map[string]string{}})
	require.NoError(t, err, "it is not even opened")
	require.Empty(t, warnings)
	_, err = Into(t.Context(), "/no/such/disk", ids, Content{Key: key})
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NotErrorAs(t, err, new(*FileError), "another host has a disk, perhaps")
}

func TestKeysOfTheImage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, have, want string }{
		{"others", "a\nb\n", "a\nb\n" + keyComment + "\n" + key},
		{"no end of line", "a", "a\n" + keyComment + "\n" + key},
		{"the same", "a\n" + key + "b\n", "a\n" + key + "b\n"},
		{"a part of another", "x " + key, "x " + key + keyComment + "\n" + key},
	} {
		rootfs, _ := disk(t)
		dir := filepath.Join(rootfs, "root/.ssh")
		require.NoError(t, os.MkdirAll(dir, 0o777))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "authorized_keys"), []byte(c.have), 0o666))
		give(t, rootfs)
		require.NoError(t, os.Chown(dir, int(ids.Base)+7, int(ids.Base)+7))
		warnings, err := Into(t.Context(), rootfs, ids, Content{Key: key})
		require.NoError(t, err)
		require.Empty(t, warnings)
		require.Equal(t, "0:0 600 "+c.want, what(t, dir, "authorized_keys"), c.name)
		require.Equal(t, "0:0 700", what(t, dir), c.name)
	}
}

// TestLinksInside: a link of the image's means what it means in the guest.
func TestLinksInside(t *testing.T) {
	t.Parallel()
	rootfs, _ := disk(t)
	require.NoError(t, os.MkdirAll(filepath.Join(rootfs, "var/roothome"), 0o700))
	require.NoError(t, os.Symlink("/var/roothome", filepath.Join(rootfs, "root")))
	require.NoError(t, os.Symlink("/../etc", filepath.Join(rootfs, "conf")))
	give(t, rootfs)
	warnings, err := Into(t.Context(), rootfs, ids, Content{Key: key, Files: []File{{"/conf/x", []byte("x")}}})
	require.NoError(t, err)
	require.Empty(t, warnings)
	require.Equal(t, "0:0 600 "+keyComment+"\n"+key, what(t, rootfs, "var/roothome/.ssh/authorized_keys"))
	require.Equal(t, "0:0 644 x", what(t, rootfs, "etc/x"))
}

// TestHostileImage: whatever an image has in the places of the key, the metadata and the accounts, nothing of the host's is read or changed,
// nothing waits, and the server goes without.
func TestHostileImage(t *testing.T) {
	t.Parallel()
	all := Content{Key: key, Metadata: map[string]string{"a": "1"}, User: "root", Password: "s3cret"}
	for name, c := range map[string]struct {
		prepare func(rootfs, host string) error
		lost    []string
	}{
		"/root leads to the host": {func(r, h string) error { return os.Symlink(h, r+"/root") }, []string{"key"}},
		"/root leads up":          {func(r, h string) error { return os.Symlink(strings.Repeat("../", 30)+h, r+"/root") }, []string{"key"}},
		".ssh leads to the host": {func(r, h string) error {
			return join(os.Mkdir(r+"/root", 0o700), os.Symlink(h, r+"/root/.ssh"))
		}, []string{"key"}},
		".ssh leads through proc": {func(r, h string) error {
			return join(os.Mkdir(r+"/root", 0o700), os.Symlink("/proc/self/root"+h, r+"/root/.ssh"))
		}, []string{"key"}},
		".ssh is a device": {func(r, _ string) error {
			return join(os.Mkdir(r+"/root", 0o700), unix.Mknod(r+"/root/.ssh", unix.S_IFCHR|0o666, 1<<8|3))
		}, []string{"key"}},
		".ssh is a pipe": {func(r, _ string) error { return join(os.Mkdir(r+"/root", 0o700), unix.Mkfifo(r+"/root/.ssh", 0o666)) }, []string{"key"}},
		"the keys are a pipe": {func(r, _ string) error {
			return join(os.MkdirAll(r+"/root/.ssh", 0o700), unix.Mkfifo(r+"/root/.ssh/authorized_keys", 0o666))
		}, []string{"key"}},
		"the keys are a device": {func(r, _ string) error {
			return join(os.MkdirAll(r+"/root/.ssh", 0o700), unix.Mknod(r+"/root/.ssh/authorized_keys", unix.S_IFCHR|0o666, 1<<8|5)) // zero
		}, []string{"key"}},
		"the keys are the host's": {func(r, h string) error {
			return join(os.MkdirAll(r+"/root/.ssh", 0o700), os.Symlink(h+"/authorized_keys", r+"/root/.ssh/authorized_keys"))
		}, []string{"key"}},
		"the keys lead to themselves": {func(r, _ string) error {
			return join(os.MkdirAll(r+"/root/.ssh", 0o700), os.Symlink("authorized_keys", r+"/root/.ssh/authorized_keys"))
		}, []string{"key"}},
		"the keys are huge": {func(r, _ string) error {
			if err := os.MkdirAll(r+"/root/.ssh", 0o700); err != nil {
				return err
			}
			return join(os.WriteFile(r+"/root/.ssh/authorized_keys", nil, 0o600), os.Truncate(r+"/root/.ssh/authorized_keys", 1<<40))
		}, []string{"key"}},
		"meta.js is a pipe":          {func(r, _ string) error { return unix.Mkfifo(r+"/meta.js", 0o666) }, []string{"metadata"}},
		"meta.js is a directory":     {func(r, _ string) error { return os.Mkdir(r+"/meta.js", 0o755) }, []string{"metadata"}},
		"meta.js is the host's":      {func(r, h string) error { return os.Symlink(h+"/authorized_keys/", r+"/meta.js") }, []string{"metadata"}},
		"shadow is a pipe":           {func(r, _ string) error { return join(os.Remove(r+"/etc/shadow"), unix.Mkfifo(r+"/etc/shadow", 0o666)) }, []string{"password"}},
		"there is no root in passwd": {func(r, _ string) error { return os.WriteFile(r+"/etc/passwd", []byte("me:x:1:1:::\n"), 0o644) }, []string{"password"}},
		"/etc leads to the host":     {func(r, h string) error { return join(os.RemoveAll(r+"/etc"), os.Symlink(h, r+"/etc")) }, []string{"password"}},
		"nothing is as it should be": {func(r, h string) error {
			return join(os.RemoveAll(r+"/etc"), os.Symlink(h, r+"/root"), os.Mkdir(r+"/meta.js", 0))
		}, []string{"key", "metadata", "password"}},
		"all is as it should be (sic)": {func(string, string) error { return nil }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rootfs, host := disk(t)
			require.NoError(t, c.prepare(rootfs, host))
			give(t, rootfs)
			begin := time.Now()
			warnings, err := Into(t.Context(), rootfs, ids, all)
			require.NoError(t, err)
			var lost []string
			for _, w := range warnings {
				lost = append(lost, w.What)
				require.NotContains(t, w.Err.Error(), "s3cret")
				require.NotContains(t, w.Err.Error(), "AAAA")
			}
			require.Equal(t, c.lost, lost, "%v", warnings)
			require.Less(t, time.Since(begin), time.Minute)
			untouched(t, host)
		})
	}
}

// untouched checks that the host is as it was.
func untouched(t *testing.T, host string) {
	t.Helper()
	entries, err := os.ReadDir(host)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	b, err := os.ReadFile(filepath.Join(host, "authorized_keys"))
	require.NoError(t, err)
	require.Equal(t, "the host's", string(b))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(host, &st))
	require.Equal(t, []uint32{0, 0o755}, []uint32{st.Uid, st.Mode & 0o7777})
}

func join(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestFilesWithoutAPlace: a file that cannot be written ends the build, with the image's fault as the reason.
func TestFilesWithoutAPlace(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]error{
		"/": unix.EISDIR, "": unix.EISDIR, "/etc": unix.EISDIR, "/etc/": unix.EISDIR, "..": unix.EISDIR,
		"/pipe": guestfile.ErrNotRegular, "/loop/x": unix.ELOOP, "/etc/motd/x": unix.EEXIST, "/host/authorized_keys": fs.ErrNotExist,
		"/etc/a\x00b": unix.EINVAL, "/" + strings.Repeat("x", 300): unix.ENAMETOOLONG, "/" + strings.Repeat("d/", 5000) + "x": unix.ENAMETOOLONG,
	} {
		rootfs, host := disk(t)
		require.NoError(t, unix.Mkfifo(rootfs+"/pipe", 0o666))
		require.NoError(t, os.Symlink("loop", rootfs+"/loop"))
		require.NoError(t, os.Symlink(host, rootfs+"/host"))
		give(t, rootfs)
		warnings, err := Into(t.Context(), rootfs, ids, Content{Key: key, Files: []File{{"/etc/first", []byte("1")}, {path, []byte("text")}}})
		require.ErrorAs(t, err, new(*FileError), path)
		require.ErrorIs(t, err, want, "%q", path)
		require.Empty(t, warnings)
		require.Equal(t, "0:0 644 1", what(t, rootfs, "etc/first"))
		untouched(t, host)
	}
}
