package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/idattr"
	"github.com/compute-agent/compute-agent/internal/storage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ownIDs is a range in which the user who runs the test is the guest's root.
func ownIDs(t testing.TB) storage.IDRange {
	t.Helper()
	if os.Getuid() != os.Getgid() {
		t.Skip("needs a user whose uid and gid are equal")
	}
	return storage.IDRange{Base: uint32(os.Getuid()), Size: 65536}
}

// tree fills a directory with one of everything.
func tree(t testing.TB, dir string) {
	t.Helper()
	write := func(name, content string, mode fs.FileMode) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), mode))
	}
	for _, d := range []string{"etc", "var/lib/deep/er", "empty", "odd \xff\xfe name", "tmp"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	write("etc/passwd", "root:x:0:0\n", 0o644)
	write("etc/shadow", "root:*\n", 0o600)
	write("var/lib/deep/er/file", strings.Repeat("0123456789", 100_000), 0o640)
	write("odd \xff\xfe name/a", "a", 0o644)
	write("empty-file", "", 0o400)
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "absolute")))
	require.NoError(t, os.Symlink("../../..", filepath.Join(dir, "var/up")))
	require.NoError(t, os.Link(filepath.Join(dir, "etc/passwd"), filepath.Join(dir, "var/passwd")))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "tmp/pipe"), 0o622))
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	require.NoError(t, err)
	_, err = sparse.WriteAt([]byte("end"), 64<<20)
	require.NoError(t, errors.Join(err, sparse.Truncate(80<<20), sparse.Close()))
	require.NoError(t, unix.Setxattr(filepath.Join(dir, "etc/shadow"), "user.note", []byte("\x00kept"), 0))
	require.NoError(t, os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky))
}

// listing describes a tree; what two trees have in common is equal in it.
func listing(t testing.TB, dir string, base uint32) []string {
	t.Helper()
	var out []string
	first := map[uint64]string{}
	require.NoError(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		require.NoError(t, err)
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(p, &st))
		rel, _ := filepath.Rel(dir, p)
		line := fmt.Sprintf("%q %o %d:%d", rel, st.Mode, int64(st.Uid)-int64(base), int64(st.Gid)-int64(base))
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := os.ReadFile(p)
			require.NoError(t, err)
			line += fmt.Sprintf(" %d %x", st.Size, bytes.TrimRight(content, "\x00")[:min(16, len(bytes.TrimRight(content, "\x00")))])
			if st.Nlink > 1 {
				if first[st.Ino] == "" {
					first[st.Ino] = rel
				}
				line += " = " + first[st.Ino]
			}
			if st.Size > 1<<20 {
				line += fmt.Sprint(" sparse ", st.Blocks*512 < st.Size/2)
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			require.NoError(t, err)
			line += " -> " + target
		}
		value := make([]byte, 64)
		if n, err := unix.Lgetxattr(p, "user.note", value); err == nil {
			line += fmt.Sprintf(" note=%q", value[:n])
		}
		line += fmt.Sprint(" ", st.Mtim.Nano())
		out = append(out, line)
		return nil
	}))
	return out
}

// pair is a source and a destination.
type pair struct {
	from, to string
	ids      storage.IDRange
	server   *Server
	offer    *Offer
	fetch    *Fetch
}

func newPair(t testing.TB, o Options) *pair {
	t.Helper()
	p := &pair{from: t.TempDir(), to: t.TempDir(), ids: ownIDs(t)}
	tree(t, p.from)
	if o.Address == "" {
		o.Address = "127.0.0.1"
	}
	p.server = NewServer(o)
	var err error
	p.offer, err = p.server.Offer(context.Background(), "m1", Source{IDs: p.ids, Trees: []Tree{treeAt(p.from)}})
	require.NoError(t, err)
	t.Cleanup(func() { p.offer.Close() })
	p.fetch, err = NewFetch(p.offer.Ticket, p.target(p.to))
	require.NoError(t, err)
	t.Cleanup(func() { p.fetch.Close(nil) })
	return p
}

// treeAt is a tree that can be read at any time.
func treeAt(dir string) Tree {
	return Tree{Open: func(context.Context, bool) (string, func() error, error) {
		return dir, func() error { return nil }, nil
	}}
}

func (p *pair) target(dirs ...string) Target {
	target := Target{IDs: p.ids}
	for _, dir := range dirs {
		target.Dirs = append(target.Dirs, TargetDir{Path: dir})
	}
	return target
}

func (p *pair) equal(t testing.TB) {
	t.Helper()
	require.Equal(t, listing(t, p.from, p.ids.Base), listing(t, p.to, p.ids.Base))
}

// finish runs the last pass on both ends.
func (p *pair) finish(t testing.TB) {
	t.Helper()
	var g sync.WaitGroup
	g.Go(func() {
		if err := p.offer.Finish(t.Context()); err != nil {
			t.Error(err)
		}
	})
	require.NoError(t, p.fetch.Last(t.Context()))
	g.Wait()
}

func TestTwoPasses(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	require.NoError(t, p.fetch.Running(t.Context()))
	p.equal(t)

	// The guest goes on: files change, come, go, and turn into others.
	in := func(name string) string { return filepath.Join(p.from, name) }
	require.NoError(t, os.WriteFile(in("etc/passwd"), []byte("changed\n"), 0o600))
	require.NoError(t, os.Rename(in("var/lib/deep"), in("moved")))
	require.NoError(t, os.Remove(in("empty-file")))
	require.NoError(t, os.Mkdir(in("empty-file"), 0o750))
	require.NoError(t, os.RemoveAll(in("odd \xff\xfe name")))
	require.NoError(t, os.Symlink("nowhere", in("odd \xff\xfe name")))
	require.NoError(t, os.Link(in("etc/shadow"), in("tmp/shadow")))
	require.NoError(t, os.Chmod(in("tmp/pipe"), 0o600))
	require.NoError(t, os.WriteFile(in("empty/new"), []byte("new"), 0o644))
	p.finish(t)
	p.equal(t)
}

// settle waits until no entry counts as one that may still change: nobody can set a ctime.
func settle() { time.Sleep(settled + 100*time.Millisecond) }

func TestUnchangedIsNotSentAgain(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	settle()
	require.NoError(t, p.fetch.Running(t.Context()))
	require.NoError(t, os.WriteFile(filepath.Join(p.from, "etc/one"), []byte("1"), 0o644))
	before := p.offer.sent.Load()
	p.finish(t)
	p.equal(t)
	require.Less(t, p.offer.sent.Load()-before, int64(100), "only the new file has content to send")
}

func TestInterruptedTransferGoesOn(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{Rate: 2 << 20})
	settle()
	for i := range 200 {
		require.NoError(t, os.WriteFile(filepath.Join(p.from, "etc", strconv.Itoa(i)), bytes.Repeat([]byte{byte(i)}, 10_000), 0o644))
	}
	proxy := newProxy(t, p.offer.Ticket.Address)
	p.fetch.ticket.Address = proxy.Addr().String()
	require.NoError(t, p.fetch.Running(t.Context()))
	require.Greater(t, proxy.connections.Load(), int32(1), "the first connection was cut")
	p.finish(t)
	p.fetch.Close(nil) // the proxy waits for its connections
	p.equal(t)
}

// proxy cuts the first connections that come through it after a while.
type proxy struct {
	net.Listener
	connections atomic.Int32
}

func newProxy(t testing.TB, address string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{Listener: l}
	var work sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); work.Wait() })
	work.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", address)
			if err != nil {
				t.Error(err)
				return
			}
			if p.connections.Add(1) <= 2 {
				time.AfterFunc(300*time.Millisecond, func() { _ = in.Close() })
			}
			work.Go(func() { _, _ = io.Copy(in, out); _ = in.Close() })
			work.Go(func() { _, _ = io.Copy(out, in); _ = out.Close() })
		}
	})
	return p
}

func TestWrongTickets(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	for name, change := range map[string]func(*Ticket){
		"token":       func(k *Ticket) { k.Token = strings.Repeat("0", 64) },
		"no token":    func(k *Ticket) { k.Token = "" },
		"id":          func(k *Ticket) { k.ID = "m2" },
		"certificate": func(k *Ticket) { k.Certificate = strings.Repeat("0", 64) },
	} {
		t.Run(name, func(t *testing.T) {
			ticket := p.offer.Ticket
			change(&ticket)
			dir := t.TempDir()
			f, err := NewFetch(ticket, p.target(dir))
			require.NoError(t, err)
			defer f.Close(nil)
			require.Error(t, f.Running(t.Context()))
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
	require.NoError(t, p.fetch.Running(t.Context()), "the right one still is")
	require.NotContains(t, fmt.Sprint(p.offer.Ticket), p.offer.Ticket.Token)
}

func TestClosedOfferIsRefused(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	other, err := p.server.Offer(t.Context(), "m2", p.offer.source)
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, p.fetch.Running(t.Context()))
	p.offer.Close()
	require.Error(t, p.offer.Finish(t.Context()))
	require.ErrorIs(t, p.fetch.Last(t.Context()), errRefused)
}

func TestDestinationGivesUp(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	require.NoError(t, p.fetch.Running(t.Context()))
	p.fetch.Close(errors.New("disk full"))
	err := p.offer.Finish(t.Context())
	require.ErrorIs(t, err, ErrAborted)
	require.ErrorContains(t, err, "disk full")
	p.fetch, err = NewFetch(p.offer.Ticket, p.target(p.to))
	require.NoError(t, err)
}

// TestSeveralTrees: the disks of an instance go together, each to its own place, and what changed on any of them goes again.
func TestSeveralTrees(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	from, to := []string{p.from, t.TempDir(), t.TempDir()}, []string{p.to, t.TempDir(), t.TempDir()}
	tree(t, from[1])
	source := Source{IDs: p.ids}
	for _, dir := range from {
		source.Trees = append(source.Trees, treeAt(dir))
	}
	offer, err := p.server.Offer(t.Context(), "m2", source)
	require.NoError(t, err)
	defer offer.Close()
	fetch, err := NewFetch(offer.Ticket, p.target(to...))
	require.NoError(t, err)
	defer fetch.Close(nil)
	equal := func() {
		t.Helper()
		for i := range from {
			require.Equal(t, listing(t, from[i], p.ids.Base), listing(t, to[i], p.ids.Base), i)
		}
	}
	settle()
	require.NoError(t, fetch.Running(t.Context()))
	equal()
	// The same names on two of them, and a file that goes.
	require.NoError(t, os.WriteFile(filepath.Join(from[1], "etc/passwd"), []byte("other\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(from[2], "only"), []byte("one\n"), 0o600))
	require.NoError(t, os.RemoveAll(filepath.Join(from[1], "var/lib")))
	before := offer.sent.Load()
	q := &pair{offer: offer, fetch: fetch}
	q.finish(t)
	equal()
	require.Less(t, offer.sent.Load()-before, int64(100), "only what changed has content to send")
}

// TestTreesThatDiffer: neither more trees than there is room for, nor fewer than are expected.
func TestTreesThatDiffer(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	two, err := p.server.Offer(t.Context(), "m2", Source{IDs: p.ids, Trees: []Tree{treeAt(p.from), treeAt(p.from)}})
	require.NoError(t, err)
	defer two.Close()
	for ticket, dirs := range map[Ticket][]string{two.Ticket: {t.TempDir()}, p.offer.Ticket: {t.TempDir(), t.TempDir()}} {
		fetch, err := NewFetch(ticket, p.target(dirs...))
		require.NoError(t, err)
		require.ErrorIs(t, fetch.Running(t.Context()), errFrame)
		fetch.Close(nil)
	}
}

func TestNotListeningWithoutOffers(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	require.NotNil(t, p.server.listener)
	p.offer.Close()
	require.Nil(t, p.server.listener)
}

func TestHostileEntriesAreRefused(t *testing.T) {
	t.Parallel()
	ids := storage.IDRange{Base: uint32(os.Getuid()), Size: 10}
	dir, outside := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "victim"), []byte("v"), 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "link")))
	r, err := newReceiver(dir, ids, false, nil)
	require.NoError(t, err)
	defer r.close()
	for _, e := range []entry{
		{Type: typeDir, Path: "../x"},
		{Type: typeDir, Path: "/x"},
		{Type: typeDir, Path: "a/../../x"},
		{Type: typeDir, Path: ""},
		{Type: typeLink, Path: "."},
		{Type: typeLink, Path: "link/x", Target: "y"},
		{Type: typeHard, Path: "y", Target: "link/victim"},
		{Type: typeHard, Path: "y", Target: "../victim"},
		{Type: typeWhiteout, Path: "y"},
		{Type: "?", Path: "y"},
		{Type: typeLink, Path: "y", Target: "z", UID: 10},
		{Type: typeDirEnd, Path: "link"},
		{Type: typeDirEnd, Path: ".", Xattrs: []xattr{{"trusted.overlay.opaque", []byte("y")}}},
		{Type: typeDirEnd, Path: ".", Xattrs: []xattr{{"security.selinux", []byte("y")}}},
	} {
		require.Error(t, r.apply(&e, newCodec(&bytes.Buffer{})), "%+v", e)
	}
	got, err := os.ReadFile(filepath.Join(outside, "victim"))
	require.NoError(t, err)
	require.Equal(t, "v", string(got))
	entries, err := os.ReadDir(outside)
	require.NoError(t, err)
	require.Len(t, entries, 1)
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	for value, ok := range map[string]bool{"name": true, "/a/b": true, "../a": false, "/a/../b": false, "": false, "a//b": false} {
		require.Equal(t, ok, checkRedirect(value) == nil, "%q", value)
	}
}

func TestShiftedValues(t *testing.T) {
	t.Parallel()
	ids := storage.IDRange{Base: 100_000, Size: 1000}
	up := func(id uint32) (uint32, error) { return toHost(id, ids) }
	down := func(id uint32) (uint32, error) { return toGuest(id, ids), nil }
	revision2 := append([]byte{1, 0, 0, 2}, make([]byte, 16)...)
	wire, err := shiftXattr(idattr.Capability, revision2, down)
	require.NoError(t, err)
	require.Equal(t, append([]byte{1, 0, 0, 3}, make([]byte, 20)...), wire)
	host, err := shiftXattr(idattr.Capability, wire, up)
	require.NoError(t, err)
	require.Equal(t, []byte{0xa0, 0x86, 1, 0}, host[20:])
	back, err := shiftXattr(idattr.Capability, host, down)
	require.NoError(t, err)
	require.Equal(t, wire, back)
	_, err = shiftXattr(idattr.Capability, []byte("short"), up)
	require.Error(t, err)

	list := []byte{2, 0, 0, 0, 2, 0, 7, 0, 5, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255}
	host, err = shiftXattr(idattr.ACLAccess, list, up)
	require.NoError(t, err)
	back, err = shiftXattr(idattr.ACLAccess, host, down)
	require.NoError(t, err)
	require.Equal(t, list, back)
	_, err = shiftXattr(idattr.ACLAccess, []byte{2, 0, 0, 0, 2, 0, 7, 0, 232, 3, 0, 0}, up)
	require.ErrorContains(t, err, "beyond")
	require.Equal(t, uint32(overflowID), toGuest(0, ids))
}

func FuzzReceive(f *testing.F) {
	var b bytes.Buffer
	c := newCodec(&b)
	_ = c.send(kindEntry, entry{Seq: 1, Type: typeFile, Path: "a", Size: 3})
	_ = c.write(kindData, append(make([]byte, 8), "abc"...))
	_ = c.write(kindEnd, nil)
	_ = c.send(kindDone, passed{})
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := TargetDir{Path: t.TempDir(), Layer: true}
		fetch, err := NewFetch(Ticket{}, Target{IDs: storage.IDRange{Base: uint32(os.Getuid()), Size: 65536}, Dirs: []TargetDir{dir}})
		require.NoError(t, err)
		defer fetch.Close(nil)
		fetch.c = newCodec(bytes.NewBuffer(data))
		_, _ = fetch.consume(t.Context(), kindPass)
	})
}

// TestNoTrees: a source without disks tells when its guest has stopped, and nothing else.
func TestNoTrees(t *testing.T) {
	t.Parallel()
	ids := storage.IDRange{Base: 1 << 16, Size: 1 << 16}
	server := NewServer(Options{Address: "127.0.0.1"})
	offer, err := server.Offer(context.Background(), "m1", Source{IDs: ids})
	require.NoError(t, err)
	t.Cleanup(offer.Close)
	fetch, err := NewFetch(offer.Ticket, Target{IDs: ids})
	require.NoError(t, err)
	t.Cleanup(func() { fetch.Close(nil) })
	require.NoError(t, fetch.Running(t.Context()))
	done := make(chan error, 1)
	go func() { done <- fetch.Last(t.Context()) }()
	select {
	case err := <-done:
		t.Fatalf("the last pass ended before the guest: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	require.NoError(t, offer.Finish(t.Context()))
	require.NoError(t, <-done)
}

// TestTreesThatNobodyExpects are refused.
func TestTreesThatNobodyExpects(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	fetch, err := NewFetch(p.offer.Ticket, Target{IDs: p.ids})
	require.NoError(t, err)
	t.Cleanup(func() { fetch.Close(nil) })
	require.ErrorIs(t, fetch.Running(t.Context()), errFrame)
}
