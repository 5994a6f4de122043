package shadow

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/functest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestCrypt compares with `openssl passwd -1|-5|-6 -salt saltstri`.
func TestCrypt(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 100)
	for _, c := range []struct {
		m              method
		password, want string
	}{
		{methodMD5, "Hello world!", "YMyguxXMBpd2TEZ.vS/3q1"},
		{methodMD5, "", "ciR2otLVXV8I9sOPWbLTc1"},
		{methodMD5, long, "3Frio7BF/M/brwwqfJdsq."},
		{methodSHA256, "Hello world!", "AcFF27v62S0zwgTU0yv0eKFexEp411.69eNIGyiG0L5"},
		{methodSHA256, long, "L8d2YofRb7Xz3BUgt04ce6ofZuxbSdaC7RSQSmSsnpB"},
		{methodSHA512, "Hello world!", "TuQo8ue714Ctf4Zl7Ctg70/YwYXvMiZP8AgmExw/pTqWoUKmQ9LD2WQO4j78UOYkYf3xOZCXu6asrMlXdzzMM1"},
		{methodSHA512, long, "zRLwrTB72ARI2TAG4PuHinw6VXCZCypEe4g65DJoo95fnjQMwyJRM2vmTUKmufvqmCShY4ZwVEXTw94ETvsUJ1"},
	} {
		require.Equal(t, c.want, c.m.hash(c.password, "saltstri"), c.m.prefix+c.password)
	}
	first, second := methodSHA512.crypt("p"), methodSHA512.crypt("p")
	require.NotEqual(t, first, second, "every password has a salt of its own")
	f := strings.Split(first, "$")
	require.Len(t, f, 4)
	require.Equal(t, f[3], methodSHA512.hash("p", f[2]))
}

func TestMethodOfLoginDefs(t *testing.T) {
	t.Parallel()
	for text, prefix := range map[string]string{
		"": "$6$", "# ENCRYPT_METHOD MD5\nENCRYPT_METHOD SHA512\n": "$6$", "ENCRYPT_METHOD YESCRYPT": "$6$", "ENCRYPT_METHOD": "$6$",
		"ENCRYPT_METHOD\tsha256\n": "$5$", "UMASK 022\nENCRYPT_METHOD MD5 \n": "$1$", "ENCRYPT_METHOD DES": "$6$",
	} {
		require.Equal(t, prefix, methodOf(text).prefix, text)
	}
}

const (
	passwdText = "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\n"
	shadowText = "# a line that nobody knows\nroot:*:19000:0:99999:7:::\nann:!$6$old:0:0:99999:7::20000:\nann:second:1::::::\nlast:x"
)

// guest makes the account files of a guest; "-" leaves one out.
func guest(t *testing.T, files map[string]string) (*os.File, string) {
	t.Helper()
	dir := t.TempDir()
	all := map[string]string{"etc/passwd": passwdText, "etc/shadow": shadowText, "etc/login.defs": "ENCRYPT_METHOD SHA512\n"}
	maps.Copy(all, files)
	for name, text := range all {
		if text == "-" {
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640))
	}
	root, err := os.Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { _ = root.Close() })
	return root, dir
}

func content(t *testing.T, elements ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elements...))
	require.NoError(t, err)
	return string(b)
}

// verify tells whether a field of an account file is the hash of a password.
func verify(t *testing.T, field, password string) {
	t.Helper()
	f := strings.Split(field, "$")
	require.Len(t, f, 4, field)
	for _, m := range []method{methodMD5, methodSHA256, methodSHA512} {
		if m.prefix == "$"+f[1]+"$" {
			require.Equal(t, m.hash(password, f[2]), f[3])
			return
		}
	}
	t.Errorf("%s is of no known method", field)
}

func TestSetPassword(t *testing.T) {
	t.Parallel()
	root, dir := guest(t, nil)
	file := filepath.Join(dir, "etc", "shadow")
	require.NoError(t, os.Chmod(file, 0o604))
	attributes := unix.Setxattr(file, "user.kept", []byte("yes"), 0) == nil
	require.NoError(t, SetPassword(t.Context(), root, "ann", "hunter2"))

	got := content(t, file)
	f, ok := find(got, "ann")
	require.True(t, ok)
	verify(t, f[1], "hunter2")
	require.NotEqual(t, "0", f[2], "the day of the change")
	require.Equal(t, "20000", f[7], "its expiry stays")
	f[1], f[2] = "!$6$old", "0"
	require.Equal(t, shadowText, edit(got, "ann", func(fields []string) { copy(fields, f) }), "no other byte changes")
	st, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o604), st.Mode())
	if attributes {
		value := make([]byte, 8)
		n, err := unix.Getxattr(file, "user.kept", value)
		require.NoError(t, err)
		require.Equal(t, "yes", string(value[:n]))
	}
	require.Equal(t, passwdText, content(t, dir, "etc/passwd"))
	entries, err := os.ReadDir(filepath.Join(dir, "etc"))
	require.NoError(t, err)
	require.Len(t, entries, 4, "the three files and the lock")

	require.NoError(t, SetPassword(t.Context(), root, "root", "a:b\nc"))
	f, _ = find(content(t, file), "root")
	verify(t, f[1], "a:b\nc")
}

func TestOtherAccountFiles(t *testing.T) {
	t.Parallel()
	t.Run("user without a shadow entry", func(t *testing.T) {
		t.Parallel()
		root, dir := guest(t, map[string]string{"etc/shadow": "root:*:1::::::"})
		require.NoError(t, SetPassword(t.Context(), root, "ann", "p"))
		text := content(t, dir, "etc/shadow")
		require.True(t, strings.HasPrefix(text, "root:*:1::::::\nann:$6$"), text)
		f, _ := find(text, "ann")
		require.Len(t, f, 9)
	})
	t.Run("guest without shadow", func(t *testing.T) {
		t.Parallel()
		root, dir := guest(t, map[string]string{"etc/shadow": "-", "etc/passwd": "root::0:0::/:/bin/sh\n", "etc/login.defs": "ENCRYPT_METHOD MD5\n"})
		require.NoError(t, SetPassword(t.Context(), root, "root", "p"))
		f, _ := find(content(t, dir, "etc/passwd"), "root")
		require.True(t, strings.HasPrefix(f[1], "$1$"), f[1])
		verify(t, f[1], "p")
	})
	t.Run("links inside the guest", func(t *testing.T) {
		t.Parallel()
		root, dir := guest(t, map[string]string{"etc/shadow": "-", "usr/lib/real/shadow": shadowText})
		require.NoError(t, os.Symlink("/usr/lib/link/shadow", filepath.Join(dir, "etc/shadow")))
		require.NoError(t, os.Symlink("../../usr/lib/real", filepath.Join(dir, "usr/lib/link")))
		require.NoError(t, SetPassword(t.Context(), root, "root", "p"))
		f, _ := find(content(t, dir, "usr/lib/real/shadow"), "root")
		verify(t, f[1], "p")
		st, err := os.Lstat(filepath.Join(dir, "etc/shadow"))
		require.NoError(t, err)
		require.Equal(t, os.ModeSymlink, st.Mode().Type())
	})
}

func TestSetPasswordFails(t *testing.T) {
	t.Parallel()
	t.Run("unknown users", func(t *testing.T) {
		t.Parallel()
		root, _ := guest(t, nil)
		for _, user := range []string{"bob", "", "ro", "root:x", "a/b", "#", "root\n"} {
			require.ErrorIs(t, SetPassword(t.Context(), root, user, "p"), ErrNoUser, user)
		}
	})
	t.Run("no accounts", func(t *testing.T) {
		t.Parallel()
		root, _ := guest(t, map[string]string{"etc/passwd": "-"})
		require.ErrorIs(t, SetPassword(t.Context(), root, "root", "p"), ErrNoAccounts)
		empty, err := os.Open(t.TempDir())
		require.NoError(t, err)
		defer empty.Close()
		require.ErrorIs(t, SetPassword(t.Context(), empty, "root", "p"), ErrNoAccounts)
	})
	t.Run("no shadow file although passwd says so", func(t *testing.T) {
		t.Parallel()
		root, _ := guest(t, map[string]string{"etc/shadow": "-"})
		require.ErrorIs(t, SetPassword(t.Context(), root, "root", "p"), os.ErrNotExist)
	})
}

// TestHostileGuest: whatever the guest has in the place of its files, nothing outside of its root is
// read or changed, and nothing waits for it.
func TestHostileGuest(t *testing.T) {
	t.Parallel()
	host := t.TempDir()
	for _, name := range []string{"shadow", "passwd"} {
		require.NoError(t, os.WriteFile(filepath.Join(host, name), []byte("root:x:0::::::\n"), 0o600))
	}
	for name, prepare := range map[string]func(t *testing.T, dir string) error{
		"shadow leads outside": func(_ *testing.T, dir string) error {
			return os.Symlink(filepath.Join(host, "shadow"), filepath.Join(dir, "etc/shadow"))
		},
		"shadow leads outside by dots": func(_ *testing.T, dir string) error {
			return os.Symlink(strings.Repeat("../", 30)+host+"/shadow", filepath.Join(dir, "etc/shadow"))
		},
		"shadow leads to itself": func(_ *testing.T, dir string) error { return os.Symlink("shadow", filepath.Join(dir, "etc/shadow")) },
		"shadow leads through proc": func(_ *testing.T, dir string) error {
			return os.Symlink("/proc/self/root"+host+"/shadow", filepath.Join(dir, "etc/shadow"))
		},
		"shadow is a directory": func(_ *testing.T, dir string) error { return os.Mkdir(filepath.Join(dir, "etc/shadow"), 0o700) },
		"shadow is a pipe":      func(_ *testing.T, dir string) error { return unix.Mkfifo(filepath.Join(dir, "etc/shadow"), 0o600) },
		"shadow is too large":   func(_ *testing.T, dir string) error { return sparse(filepath.Join(dir, "etc/shadow")) },
		"the lock is a pipe":    func(_ *testing.T, dir string) error { return unix.Mkfifo(filepath.Join(dir, "etc/.pwd.lock"), 0o600) },
		"the lock leads outside": func(_ *testing.T, dir string) error {
			return os.Symlink(filepath.Join(host, "lock"), filepath.Join(dir, "etc/.pwd.lock"))
		},
		"etc leads outside by a parent": func(_ *testing.T, dir string) error { return relink(dir, strings.Repeat("../", 30)+host) },
		"etc leads outside":             func(_ *testing.T, dir string) error { return relink(dir, host) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, dir := guest(t, map[string]string{"etc/shadow": "-"})
			require.NoError(t, prepare(t, dir))
			begin := time.Now()
			err := SetPassword(t.Context(), root, "root", "secret")
			require.Error(t, err)
			require.NotContains(t, err.Error(), "secret")
			require.Less(t, time.Since(begin), time.Minute)
			require.Equal(t, "root:x:0::::::\n", content(t, host, "shadow"))
			require.NoFileExists(t, filepath.Join(host, "lock"))
			require.NoFileExists(t, filepath.Join(host, ".pwd.lock"))
		})
	}
}

func sparse(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return joined(f.Truncate(1<<40), f.Close())
}

func joined(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func relink(dir, to string) error {
	return joined(os.RemoveAll(filepath.Join(dir, "etc")), os.Symlink(to, filepath.Join(dir, "etc")))
}

func TestLockThatIsHeld(t *testing.T) {
	t.Parallel()
	root, dir := guest(t, nil)
	held, err := os.Create(filepath.Join(dir, "etc", ".pwd.lock"))
	require.NoError(t, err)
	require.NoError(t, unix.FcntlFlock(held.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPoll)
	defer cancel()
	require.ErrorIs(t, SetPassword(ctx, root, "root", "p"), context.DeadlineExceeded)
	require.Equal(t, shadowText, content(t, dir, "etc/shadow"))

	time.AfterFunc(2*lockPoll, func() { _ = held.Close() })
	require.NoError(t, SetPassword(t.Context(), root, "root", "p"))
}

// TestRenamesElsewhere: the kernel gives a path with ".." up when anything is renamed meanwhile, wherever that is.
func TestRenamesElsewhere(t *testing.T) {
	t.Parallel()
	root, dir := guest(t, nil)
	functest.RenameUntilEnd(t, filepath.Join(dir, "etc/login.defs"), filepath.Join(dir, "etc/renamed"))
	for range 5000 {
		f, err := openat2(root, strings.Repeat("etc/../", 20)+"etc", unix.O_PATH, unix.RESOLVE_IN_ROOT)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
}

// TestOwnerOfAGuest: the files of a guest belong to ids of its own range, and the new ones do.
func TestOwnerOfAGuest(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const base = 1_900_000_000
	root, dir := guest(t, nil)
	file := filepath.Join(dir, "etc", "shadow")
	for name, group := range map[string]int{"etc": 0, "etc/passwd": 0, "etc/shadow": 42, "etc/login.defs": 0} {
		require.NoError(t, os.Chown(filepath.Join(dir, name), base, base+group))
	}
	require.NoError(t, os.Chmod(file, 0))
	for _, d := range []string{filepath.Dir(dir), dir} { // the test's own
		require.NoError(t, os.Chmod(d, 0o755))
	}
	require.NoError(t, SetPassword(t.Context(), root, "root", "p"))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(file, &st))
	require.Equal(t, []uint32{base, base + 42, unix.S_IFREG}, []uint32{st.Uid, st.Gid, st.Mode})
	require.NoError(t, unix.Stat(filepath.Join(dir, "etc", ".pwd.lock"), &st))
	require.Equal(t, uint32(base), st.Uid)
	require.Equal(t, 0, func() int { uid, _ := unix.SetfsuidRetUid(-1); return uid }(), "the process keeps its own")
}

func FuzzEdit(f *testing.F) {
	f.Add(shadowText, "ann")
	f.Fuzz(func(t *testing.T, text, user string) {
		fields, ok := find(text, user)
		same := edit(text, user, func(got []string) {
			if !ok || len(got) != len(fields) {
				t.Fatal("edit and find disagree")
			}
		})
		if same != text {
			t.Fatalf("%q became %q", text, same)
		}
	})
}
