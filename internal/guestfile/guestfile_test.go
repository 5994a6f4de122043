package guestfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ids of the test's guest: other ones than ours if we may.
var ids = func() IDs {
	if os.Geteuid() == 0 {
		return IDs{Base: 700_000, Count: 65536}
	}
	return IDs{Base: uint32(os.Getuid()), Count: 1}
}()

// guest has a secret beside its root directory, to which its links try to lead.
func guest(t *testing.T) (r *Root, dir string) {
	t.Helper()
	base := t.TempDir()
	dir = filepath.Join(base, "root")
	write(t, filepath.Join(base, "secret"), "the host's")
	write(t, filepath.Join(dir, "etc/secret"), "the guest's")
	write(t, filepath.Join(dir, "home/a"), "a")
	for name, target := range map[string]string{
		"absolute": "/etc/secret", "relative": "etc/secret", "dir": "/etc", "home/up": "../../../../../secret", "outside": base + "/secret",
		"new": "/etc/new", "home/new": "../etc/new2", "loop": "loop", "root": "/", "home/dots": "..", "magic": "/proc/self/root/etc/secret",
	} {
		require.NoError(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	return open1(t, dir), dir
}

func open1(t *testing.T, dir string) *Root {
	t.Helper()
	f, err := os.Open(dir)
	require.NoError(t, err)
	r := New(f, ids)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func write(t *testing.T, file, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, []byte(text), 0o640))
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(file, int(ids.Base)+5, int(ids.Base)+6))
	}
}

func read(r *Root, name string) (string, error) {
	f, _, err := r.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

func TestOpen(t *testing.T) {
	t.Parallel()
	r, _ := guest(t)
	for name, want := range map[string]string{
		"/etc/secret": "the guest's", "etc/secret": "the guest's", "../../etc/secret": "the guest's", "/absolute": "the guest's",
		"/relative": "the guest's", "/dir/secret": "the guest's", "/root/root/dir/secret": "the guest's",
	} {
		got, err := read(r, name)
		require.NoError(t, err, name)
		require.Equal(t, want, got, name)
	}
	for name, want := range map[string]error{
		"/home/up": fs.ErrNotExist, "/outside": fs.ErrNotExist, "/../secret": fs.ErrNotExist, "/loop": unix.ELOOP, "/pipe": ErrNotRegular,
		"/etc": ErrNotRegular, "/": ErrNotRegular, "/magic": fs.ErrNotExist,
	} {
		_, err := read(r, name)
		require.ErrorIs(t, err, want, name)
	}
}

// TestHostFileSystems: a name in /proc or /sys is the host's, even where a file of that name could be opened.
func TestHostFileSystems(t *testing.T) {
	t.Parallel()
	r := open1(t, "/")
	_, err := read(r, "/proc/version")
	require.ErrorIs(t, err, ErrFileSystem)
	_, err = r.Create("/proc/sysrq-trigger", 0o600, Attributes{})
	require.ErrorIs(t, err, ErrFileSystem)
	_, err = r.Create("/sys/new", 0o600, Attributes{})
	require.ErrorIs(t, err, ErrFileSystem)
	require.ErrorIs(t, r.Mkdir("/sys/new", 0o700, Attributes{}), ErrFileSystem)
	require.ErrorIs(t, r.Symlink("x", "/sys/new", Attributes{}), ErrFileSystem)
	_, err = read(r, "/dev/null")
	require.ErrorIs(t, err, ErrNotRegular)
	_, err = r.Create("/dev/null", 0o600, Attributes{})
	require.ErrorIs(t, err, ErrNotRegular)
}

func put(r *Root, name, text string, perm fs.FileMode, a Attributes) error {
	w, err := r.Create(name, perm, a)
	if err != nil {
		return err
	}
	if _, err := w.WriteString(text); err != nil {
		return errors.Join(err, w.Discard())
	}
	return w.Commit()
}

// what tells what a file of the test's guest is: owner and group as the guest counts, mode, content.
func what(t *testing.T, file string) string {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(file, &st))
	text := fmt.Sprintf("%d:%d %o", st.Uid-ids.Base, st.Gid-ids.Base, st.Mode&0o7777)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		return text + " " + string(b)
	case unix.S_IFLNK:
		target, err := os.Readlink(file)
		require.NoError(t, err)
		return strings.Replace(text, " 777", "", 1) + " -> " + target
	}
	return text
}

func TestCreate(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners of files")
	}
	id := func(n uint32) *uint32 { return &n }
	for _, c := range []struct {
		name string
		a    Attributes
		at   string // where it is to be
		want string
	}{
		{"/etc/fresh", Attributes{}, "etc/fresh", "0:0 751 text"},
		{"etc/fresh", Attributes{UID: id(1), Mode: id(0o4755)}, "etc/fresh", "1:0 4755 text"},
		{"/etc/secret", Attributes{}, "etc/secret", "5:6 640 text"},
		{"/etc/secret", Attributes{UID: id(0), GID: id(65535), Mode: id(0)}, "etc/secret", "0:65535 0 text"},
		{"/absolute", Attributes{}, "etc/secret", "5:6 640 text"},
		{"/new", Attributes{}, "etc/new", "0:0 751 text"},
		{"/home/new", Attributes{}, "etc/new2", "0:0 751 text"},
		{"/dir/fresh", Attributes{}, "etc/fresh", "0:0 751 text"},
		{"/home/up", Attributes{}, "secret", "0:0 751 text"},
	} {
		r, dir := guest(t)
		require.NoError(t, put(r, c.name, "text", 0o751, c.a), c.name)
		require.Equal(t, c.want, what(t, filepath.Join(dir, c.at)), c.name)
		nothingTemporary(t, dir)
		b, err := os.ReadFile(filepath.Join(dir, "../secret"))
		require.NoError(t, err)
		require.Equal(t, "the host's", string(b))
	}
	r, dir := guest(t)
	for name, want := range map[string]error{
		"/etc": unix.EISDIR, "/": unix.EISDIR, "/root": unix.EISDIR, "/home/dots": unix.EISDIR, "/pipe": ErrNotRegular, "/loop": unix.ELOOP,
		"/no/such": fs.ErrNotExist, "/etc/secret/x": unix.ENOTDIR, "/outside": fs.ErrNotExist,
	} {
		require.ErrorIs(t, put(r, name, "text", 0o644, Attributes{}), want, name)
	}
	require.ErrorContains(t, put(r, "/etc/fresh", "", 0, Attributes{GID: id(65536)}), "the guest has no id 65536: its ids end with 65535")
	nothingTemporary(t, dir)
}

func nothingTemporary(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		require.False(t, strings.HasPrefix(filepath.Base(path), "."), path)
		return err
	}))
}

func TestDiscard(t *testing.T) {
	t.Parallel()
	r, dir := guest(t)
	w, err := r.Create("/etc/secret", 0o644, Attributes{})
	require.NoError(t, err)
	_, err = w.WriteString("half")
	require.NoError(t, err)
	require.NoError(t, w.Discard())
	nothingTemporary(t, dir)
	got, err := read(r, "/etc/secret")
	require.NoError(t, err)
	require.Equal(t, "the guest's", got)
}

// names are those in a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	found := make([]string, 0, len(entries))
	for _, e := range entries {
		found = append(found, e.Name())
	}
	return found
}

// TestCommit: until it is committed a file has no name, or, where the file system does not know such files, none that anybody asks for. What the
// guest has made of the name meanwhile is replaced, as far as it can be.
func TestCommit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		meanwhile func(t *testing.T, file string)
		want      error
	}{
		{"fresh", func(*testing.T, string) {}, nil},
		{"secret", func(*testing.T, string) {}, nil},
		{"secret", func(t *testing.T, file string) { require.NoError(t, os.Remove(file)) }, nil},
		{"fresh", func(t *testing.T, file string) { write(t, file, "the guest's, too") }, nil},
		{"fresh", func(t *testing.T, file string) { require.NoError(t, unix.Mkfifo(file, 0o600)) }, nil},
		{"fresh", func(t *testing.T, file string) { require.NoError(t, os.Symlink("secret", file)) }, nil},
		{"fresh", func(t *testing.T, file string) { require.NoError(t, os.Mkdir(file, 0o700)) }, unix.EISDIR},
	} {
		for _, named := range []bool{false, true} {
			r, dir := guest(t)
			etc := filepath.Join(dir, "etc")
			w, err := r.Create("/etc/"+c.name, 0o640, Attributes{})
			require.NoError(t, err)
			if named { // as on an overlay of an old kernel
				require.NoError(t, w.Close())
				require.NoError(t, r.asGuest(w.createNamed))
				require.Len(t, names(t, etc), 2)
			} else {
				require.Equal(t, []string{"secret"}, names(t, etc))
			}
			_, err = w.WriteString("text")
			require.NoError(t, err)
			file := filepath.Join(etc, c.name)
			c.meanwhile(t, file)
			require.ErrorIs(t, w.Commit(), c.want)
			nothingTemporary(t, dir)
			if c.want == nil {
				require.Regexp(t, `640 text$`, what(t, file))
			}
			if c.name != "secret" {
				require.Regexp(t, `640 the guest's$`, what(t, filepath.Join(etc, "secret")))
			}
		}
	}
}

// victimDir says to a run of this test's program that it is the one to be killed, and where it writes.
const victimDir = "GUESTFILE_TEST_VICTIM"

// writeForEver begins to write a new file and to replace one, tells so, and waits for its end.
func writeForEver(dir string) {
	f, err := os.Open(dir)
	r := New(f, ids)
	for _, name := range []string{"/etc/fresh", "/etc/secret"} {
		var w *Writer
		if err == nil {
			w, err = r.Create(name, 0o644, Attributes{})
		}
		if err == nil {
			_, err = w.WriteString("half")
		}
	}
	_, _ = fmt.Fprintln(os.Stdout, "written:", err)
	time.Sleep(time.Minute)
	os.Exit(1)
}

// TestKilled: a process that is killed while it writes leaves nothing in the guest.
func TestKilled(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv(victimDir); dir != "" {
		writeForEver(dir)
	}
	_, dir := guest(t)
	victim := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestKilled$")
	victim.Env = append(os.Environ(), victimDir+"="+dir)
	out, err := victim.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, victim.Start())
	said, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "written: <nil>\n", said)
	require.NoError(t, victim.Process.Kill())
	require.ErrorContains(t, victim.Wait(), "killed")
	require.Equal(t, []string{"secret"}, names(t, filepath.Join(dir, "etc")))
	require.Regexp(t, `640 the guest's$`, what(t, filepath.Join(dir, "etc/secret")))
}

func TestDirectoriesAndLinks(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners of files")
	}
	r, dir := guest(t)
	three := uint32(3)
	require.NoError(t, r.MkdirAll("/srv/a/b"))
	require.NoError(t, r.MkdirAll("/srv/a/b"))
	require.NoError(t, r.MkdirAll("/dir/x"))
	require.NoError(t, r.Mkdir("/srv/own", 0o2770, Attributes{UID: &three}))
	require.NoError(t, r.Symlink("/nowhere", "/srv/link", Attributes{GID: &three}))
	require.NoError(t, r.Symlink("/etc", "/srv/link", Attributes{}))
	require.NoError(t, r.Symlink("x", "/home/a", Attributes{}))
	require.ErrorIs(t, r.Symlink("x", "/etc", Attributes{}), unix.EISDIR)
	require.ErrorIs(t, r.Mkdir("/etc/secret", 0o755, Attributes{}), fs.ErrExist)
	for name, want := range map[string]string{
		"srv": "0:0 755", "srv/a/b": "0:0 755", "etc/x": "0:0 755", "srv/own": "3:0 770", "srv/link": "0:0 -> /etc", "home/a": "0:0 -> x",
	} {
		require.Equal(t, want, what(t, filepath.Join(dir, name)), name)
	}
	nothingTemporary(t, dir)
}

func TestSetDirectory(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners of files")
	}
	r, dir := guest(t)
	number := func(n uint32) *uint32 { return &n }
	require.NoError(t, r.SetDirectory("/etc", Attributes{UID: number(0), GID: number(3), Mode: number(0o2750)}))
	require.Equal(t, "0:3 2750", what(t, filepath.Join(dir, "etc")))
	require.NoError(t, r.SetDirectory("/dir", Attributes{GID: number(0), Mode: number(0o700)}))
	require.Equal(t, "0:0 700", what(t, filepath.Join(dir, "etc")), "a link is followed")
	require.NoError(t, r.SetDirectory("etc", Attributes{}))
	require.Equal(t, "0:0 700", what(t, filepath.Join(dir, "etc")))
	for name, want := range map[string]error{
		"/home/a": unix.ENOTDIR, "/pipe": unix.ENOTDIR, "/outside": fs.ErrNotExist, "/loop": unix.ELOOP, "/gone": fs.ErrNotExist,
	} {
		require.ErrorIs(t, r.SetDirectory(name, Attributes{Mode: number(0o777)}), want, name)
	}
	require.ErrorIs(t, open1(t, "/").SetDirectory("/proc", Attributes{}), ErrFileSystem)
	require.ErrorContains(t, r.SetDirectory("/etc", Attributes{UID: number(65536)}), "the guest has no id 65536")
}

// TestOpenDisk: what is made has ids of the guest's, as the disk has them.
func TestOpenDisk(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners of files")
	}
	for owner, want := range map[uint32]uint32{ids.Base: ids.Base + 5, ids.Base + 65535: ids.Base + 5, ids.Base + 65536: 5, ids.Base - 1: 5, 0: 5} {
		dir := t.TempDir()
		require.NoError(t, os.Chown(dir, int(owner), int(owner)))
		r, err := OpenDisk(dir, ids)
		require.NoError(t, err)
		five := uint32(5)
		require.NoError(t, put(r, "/new", "text", 0o644, Attributes{UID: &five}))
		require.NoError(t, r.Close())
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(filepath.Join(dir, "new"), &st))
		require.Equal(t, want, st.Uid, owner)
	}
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink("/", link))
	for _, path := range []string{link, link + "/nowhere", "/dev/null"} {
		_, err := OpenDisk(path, ids)
		require.Error(t, err, path)
	}
}

func TestWalk(t *testing.T) {
	t.Parallel()
	r, _ := guest(t)
	walk := func(name string) []string {
		var got []string
		require.NoError(t, r.Walk(name, func(e *Entry) error {
			text := e.Name
			switch {
			case e.Skipped != nil:
				text += ": " + e.Skipped.Error()
			case e.Link != "":
				text += " -> " + e.Link
			case e.Mode.IsRegular():
				f, err := e.Open()
				require.NoError(t, err)
				b, err := io.ReadAll(f)
				require.NoError(t, errors.Join(err, f.Close()))
				text += " = " + string(b)
			}
			got = append(got, text)
			return nil
		}))
		return got
	}
	want := []string{".", "a = a", "dots -> ..", "new -> ../etc/new2", "up -> ../../../../../secret"}
	if diff := cmp.Diff(want, walk("/home")); diff != "" {
		t.Errorf("walk (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{".", "secret = the guest's"}, walk("/dir")); diff != "" {
		t.Errorf("walk through a link (-want +got):\n%s", diff)
	}
	all := walk("/")
	require.Contains(t, all, "pipe: it is not a regular file")
	require.Contains(t, all, "home/a = a")
	require.ErrorIs(t, r.Walk("/etc/secret", nil), unix.ENOTDIR)
}

// TestRace: a guest that changes what names lead to while they are used gets nothing of the host's and puts nothing there.
func TestRace(t *testing.T) {
	t.Parallel()
	r, dir := guest(t)
	flip, real := filepath.Join(dir, "flip"), filepath.Join(dir, "real")
	write(t, filepath.Join(real, "secret"), "the guest's")
	outside := filepath.Dir(dir)
	stop := make(chan struct{})
	var flipping sync.WaitGroup
	flipping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.Symlink(outside, flip)
			_ = os.Remove(flip)
			_ = os.Rename(real, flip)
			_ = os.Rename(flip, real)
		}
	})
	for range 200 {
		if text, err := read(r, "/flip/secret"); err == nil {
			require.Equal(t, "the guest's", text)
		}
		_ = put(r, "/flip/secret", "the guest's", 0o644, Attributes{})
		_ = put(r, "/flip/planted", "x", 0o644, Attributes{})
		_ = r.MkdirAll("/flip/dir")
		_ = r.Walk("/", func(e *Entry) error {
			if e.Skipped == nil && e.Mode.IsRegular() {
				if f, err := e.Open(); err == nil {
					b, _ := io.ReadAll(f)
					require.NotEqual(t, "the host's", string(b))
					_ = f.Close()
				}
			}
			return nil
		})
	}
	close(stop)
	flipping.Wait()
	entries, err := os.ReadDir(outside)
	require.NoError(t, err)
	require.Len(t, entries, 2, "root and secret")
	b, err := os.ReadFile(filepath.Join(outside, "secret"))
	require.NoError(t, err)
	require.Equal(t, "the host's", string(b))
}
