package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/guestfile"
)

func TestGuestPath(t *testing.T) {
	t.Parallel()
	for word, want := range map[string][2]string{
		"instance-0000002a/etc/hosts": {"instance-0000002a", "/etc/hosts"}, "3f8f/": {"3f8f", "/"}, "3f8f/var/": {"3f8f", "/var/"},
	} {
		server, path, err := splitGuestPath(word)
		require.NoError(t, err)
		require.Equal(t, want, [2]string{server, path})
	}
	for _, word := range []string{"instance-0000002a", "/etc/hosts", ""} {
		_, _, err := splitGuestPath(word)
		require.ErrorContains(t, err, "is not SERVER/PATH")
	}
	require.Equal(t, "syslog", localBase("s", "/var/log/syslog"))
	require.Equal(t, "log", localBase("s", "/var/log/"))
	require.Equal(t, "s", localBase("s", "/"))
}

func TestParseMode(t *testing.T) {
	t.Parallel()
	mode, err := parseMode("4755")
	require.NoError(t, err)
	require.Equal(t, uint32(0o4755), *mode)
	mode, err = parseMode("")
	require.NoError(t, err)
	require.Nil(t, mode)
	for _, bad := range []string{"u+x", "888", "17777", "-1"} {
		_, err = parseMode(bad)
		require.ErrorContains(t, err, "not an octal number")
	}
}

// guestDir is a directory that stands for a guest's root.
func guestDir(t *testing.T) (*guestfile.Root, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "guest")
	require.NoError(t, os.Mkdir(dir, 0o755))
	f, err := os.Open(dir)
	require.NoError(t, err)
	root := guestfile.New(f, guestfile.IDs{Base: uint32(os.Getuid()), Count: 65536})
	t.Cleanup(func() { require.NoError(t, root.Close()) })
	return root, dir
}

// tree makes files: a text, "/" for a directory, "-> target" for a link, "|" for a pipe.
func tree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		name = filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		target, link := strings.CutPrefix(text, "-> ")
		switch {
		case link:
			require.NoError(t, os.Symlink(target, name))
		case text == "/":
			require.NoError(t, os.Mkdir(name, 0o750))
		case text == "|":
			require.NoError(t, unix.Mkfifo(name, 0o600))
		default:
			require.NoError(t, os.WriteFile(name, []byte(text), 0o640))
		}
	}
}

// listing is the opposite.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		require.NoError(t, err)
		name, err := filepath.Rel(dir, path)
		require.NoError(t, err)
		switch {
		case name == ".":
		case entry.IsDir():
			found[name] = "/"
		case entry.Type() == os.ModeSymlink:
			target, err := os.Readlink(path)
			require.NoError(t, err)
			found[name] = "-> " + target
		case entry.Type() == os.ModeNamedPipe:
			found[name] = "|"
		default:
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			found[name] = string(text)
		}
		return nil
	}))
	return found
}

func TestPush(t *testing.T) {
	t.Parallel()
	local := t.TempDir()
	tree(t, local, map[string]string{"one": "1", "two": "2", "site/index": "hello", "site/sub": "/", "site/link": "-> index", "site/pipe": "|"})
	files := func(names ...string) (full []string) {
		for _, n := range names {
			full = append(full, filepath.Join(local, n))
		}
		return full
	}
	for name, c := range map[string]struct {
		p      pusher
		files  []string
		target string
		want   map[string]string
		fault  string
	}{
		"to a name":          {files: files("one"), target: "/etc/x", want: map[string]string{"etc/x": "1"}},
		"over a file":        {files: files("one"), target: "/etc/old", want: map[string]string{"etc/old": "1"}},
		"into a directory":   {files: files("one"), target: "/etc", want: map[string]string{"etc/one": "1"}},
		"several":            {files: files("one", "two"), target: "/etc", want: map[string]string{"etc/one": "1", "etc/two": "2"}},
		"through a link":     {files: files("one"), target: "/link", want: map[string]string{"etc/one": "1"}},
		"standard input":     {files: []string{"-"}, target: "/etc/x", want: map[string]string{"etc/x": "typed"}},
		"input has no name":  {files: []string{"-"}, target: "/etc", fault: "standard input has no name"},
		"no directory":       {files: files("one"), target: "/no/x", fault: "no such file"},
		"made directory":     {p: pusher{parents: true}, files: files("one"), target: "/no/such/x", want: map[string]string{"no": "/", "no/such": "/", "no/such/x": "1"}},
		"made for its name":  {p: pusher{parents: true}, files: files("one"), target: "/no/", want: map[string]string{"no": "/", "no/one": "1"}},
		"a directory":        {files: files("site"), target: "/etc", fault: "use --recursive"},
		"recursive":          {p: pusher{recursive: true}, files: files("site"), target: "/etc", want: map[string]string{"etc/site": "/", "etc/site/index": "hello", "etc/site/sub": "/", "etc/site/link": "-> index"}},
		"recursive, renamed": {p: pusher{recursive: true}, files: files("site"), target: "/new", want: map[string]string{"new": "/", "new/index": "hello", "new/sub": "/", "new/link": "-> index"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, dir := guestDir(t)
			before := map[string]string{"etc": "/", "etc/old": "old", "link": "-> /etc"}
			tree(t, dir, map[string]string{"etc/old": "old", "link": "-> /etc"})
			c.p.root, c.p.stdin, c.p.warn, c.p.bars = root, strings.NewReader("typed"), io.Discard, &bars{}
			err := c.p.push(t.Context(), c.files, c.target)
			if c.fault != "" {
				require.ErrorContains(t, err, c.fault)
			} else {
				require.NoError(t, err)
			}
			maps.Copy(before, c.want)
			require.Equal(t, before, listing(t, dir))
		})
	}
}

// TestPushInterrupted: nothing is left of a copy that is given up.
func TestPushInterrupted(t *testing.T) {
	t.Parallel()
	root, dir := guestDir(t)
	pr, pw := io.Pipe()
	defer pw.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		_, _ = pw.Write([]byte("half"))
		cancel(errors.New("ctrl-c"))
	}()
	p := pusher{root: root, stdin: pr, warn: io.Discard, bars: &bars{}}
	require.ErrorContains(t, p.push(ctx, []string{"-"}, "/x"), "ctrl-c")
	require.Empty(t, listing(t, dir))
}

func TestPull(t *testing.T) {
	t.Parallel()
	root, dir := guestDir(t)
	tree(t, dir, map[string]string{
		"var/log/a": "a", "var/log/b/c": "c", "var/log/link": "-> /etc/passwd", "var/log/pipe": "|", "hosts": "-> /etc/hosts", "etc/hosts": "h", "dir": "-> /var/log",
	})
	require.NoError(t, os.Chmod(filepath.Join(dir, "etc/hosts"), 0o755|os.ModeSetuid))
	local := t.TempDir()
	var stdout, warned bytes.Buffer
	p := puller{stdout: &stdout, warn: &warned, bars: &bars{}}
	pull := func(name, target string) error { return p.pull(t.Context(), root, name, target) }
	require.NoError(t, pull("/hosts", "-"))
	require.Equal(t, "h", stdout.String())
	require.NoError(t, pull("/hosts", filepath.Join(local, "hosts")))
	info, err := os.Stat(filepath.Join(local, "hosts"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), info.Mode(), "without setuid")
	require.NoError(t, pull("/var/log/a", filepath.Join(local, "hosts")), "over a file")
	require.NoError(t, pull("/var/log/a", "/dev/null"))
	info, err = os.Stat("/dev/null")
	require.NoError(t, err)
	require.NotZero(t, info.Mode()&os.ModeDevice, "written to, and not replaced")
	require.ErrorContains(t, pull("/var/log", filepath.Join(local, "log")), "use --recursive")
	require.ErrorContains(t, pull("/no", filepath.Join(local, "no")), "no such file")

	p.recursive = true
	for range 2 { // again over what is there
		require.NoError(t, pull("/dir", filepath.Join(local, "log")))
		require.Equal(t, map[string]string{
			"hosts": "a", "log": "/", "log/a": "a", "log/b": "/", "log/b/c": "c", "log/link": "-> /etc/passwd",
		}, listing(t, local))
	}
	require.Contains(t, warned.String(), `skipped "/dir/pipe": it is not a regular file`)
}

// TestPullStaysBelow: a link that an earlier copy has made leads nowhere when the guest has a directory of its name now.
func TestPullStaysBelow(t *testing.T) {
	t.Parallel()
	root, dir := guestDir(t)
	local, outside := t.TempDir(), t.TempDir()
	tree(t, dir, map[string]string{"data/x": "-> " + outside})
	p := puller{recursive: true, warn: io.Discard, bars: &bars{}}
	require.NoError(t, p.pull(t.Context(), root, "/data", local))
	require.NoError(t, os.Remove(filepath.Join(dir, "data/x")))
	tree(t, dir, map[string]string{"data/x/planted": "p"})
	require.ErrorContains(t, p.pull(t.Context(), root, "/data", local), "there is something else")
	require.Empty(t, listing(t, outside))
}

func TestPullTarget(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tree(t, dir, map[string]string{"file": "x"})
	for _, c := range []struct {
		p       puller
		file    string
		several bool
		into    bool
		fault   string
	}{
		{file: "-"},
		{file: "-", several: true, fault: "one file"},
		{p: puller{recursive: true}, file: "-", fault: "one file"},
		{file: dir, into: true},
		{file: dir + "/file"},
		{file: dir + "/new"},
		{file: dir + "/new/", into: true},
		{file: dir + "/new", several: true, into: true},
		{p: puller{parents: true}, file: dir + "/a/b"},
	} {
		target, into, err := c.p.target(c.file, c.several)
		if c.fault != "" {
			require.ErrorContains(t, err, c.fault)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, []any{c.file, c.into}, []any{target, into}, c.file)
	}
	require.DirExists(t, dir+"/a")
	require.NoFileExists(t, dir+"/a/b")
}
