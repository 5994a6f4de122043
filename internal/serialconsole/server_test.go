package serialconsole

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
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

	"github.com/compute-agent/compute-agent/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errDown = errors.New("down")
	errGone = errors.New("gone")
)

// patience is more than anything here takes, on a busy machine too.
const patience = time.Minute

// guests have consoles that echo.
type guests struct {
	mu     sync.Mutex // guards the fields below
	failed map[string]error
	open   map[string]*echo
	denied int
}

type echo struct {
	g    *guests
	uuid string
	r    *io.PipeReader
	w    *io.PipeWriter
}

func (g *guests) Open(_ context.Context, uuid string) (io.ReadWriteCloser, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.failed[uuid]; err != nil {
		g.denied++
		return nil, err
	}
	e := &echo{g: g, uuid: uuid}
	e.r, e.w = io.Pipe()
	g.open[uuid] = e
	return e, nil
}

func (e *echo) Read(p []byte) (int, error)  { return e.r.Read(p) }
func (e *echo) Write(p []byte) (int, error) { return e.w.Write(p) }

func (e *echo) Close() error {
	e.g.mu.Lock()
	defer e.g.mu.Unlock()
	if e.g.open[e.uuid] == e {
		delete(e.g.open, e.uuid)
	}
	return errors.Join(e.w.Close(), e.r.Close())
}

func (g *guests) console(uuid string) *echo {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open[uuid]
}

func (g *guests) fail(uuid string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failed[uuid] = err
}

// denials tells how often a console was not opened.
func (g *guests) denials() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.denied
}

func newGuests() *guests { return &guests{failed: map[string]error{}, open: map[string]*echo{}} }

func database(t *testing.T) *state.DB {
	t.Helper()
	db, err := state.Open(filepath.Join(t.TempDir(), "db"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// spans are ranges of ports for one test each, below those that the kernel gives to whoever asks for any: a port that is given
// back for a moment is not somebody else's then.
var spans atomic.Int32

const (
	firstPort = 20000
	spanPorts = 32
	allSpans  = 350
)

// firstSpan is where a process begins, beside others that run the same tests.
var firstSpan = rand.Int32N(allSpans)

// free finds a range of ports the first of which nobody listens on just now.
func free(t *testing.T) int {
	t.Helper()
	for range allSpans {
		first := firstPort + int((firstSpan+spans.Add(1))%allSpans)*spanPorts
		if l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(first)); err == nil {
			require.NoError(t, l.Close())
			return first
		}
	}
	require.Fail(t, "no port is free")
	return 0
}

func serve(t *testing.T, g *guests, db *state.DB, first, last int) (s *Server, stop func()) {
	t.Helper()
	s = New(Options{Address: "127.0.0.1", First: first, Last: last, Open: g.Open, Down: errDown, DB: db})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			require.ErrorIs(t, err, context.Canceled)
		case <-time.After(patience):
			t.Error("the server does not end")
		}
	})
	t.Cleanup(stop)
	return s, stop
}

type client struct {
	t *testing.T
	net.Conn
}

func dial(t *testing.T, port int) client {
	t.Helper()
	c, err := net.DialTimeout("tcp", "127.0.0.1:"+strconv.Itoa(port), patience)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return client{t, c}
}

func (c client) says(text string) {
	c.t.Helper()
	_, err := io.WriteString(c, text)
	require.NoError(c.t, err)
	got := make([]byte, len(text))
	_, err = io.ReadFull(c, got)
	require.NoError(c.t, err)
	require.Equal(c.t, text, string(got))
}

func (c client) ends() string {
	c.t.Helper()
	b, err := io.ReadAll(c)
	if err != nil {
		require.NotErrorIs(c.t, err, os.ErrDeadlineExceeded)
	}
	return string(b)
}

func TestConsole(t *testing.T) {
	t.Parallel()
	g := newGuests()
	first := free(t)
	s, _ := serve(t, g, database(t), first, first+20)
	port, err := s.Port(t.Context(), "a")
	require.NoError(t, err)
	again, err := s.Port(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, port, again)
	other, err := s.Port(t.Context(), "b")
	require.NoError(t, err)
	require.NotEqual(t, port, other)

	require.Empty(t, dial(t, port).ends(), "nobody was admitted")
	require.False(t, s.Admit("a", other))
	require.False(t, s.Admit("c", port))
	require.True(t, s.Admit("a", port))
	one := dial(t, port)
	one.says("first\r\n")
	require.Empty(t, dial(t, port).ends(), "an admission is for one connection")
	one.says("still here")

	require.True(t, s.Admit("a", port))
	two := dial(t, port)
	two.says("second")
	one.ends()
	require.NoError(t, two.Close())
	require.Eventually(t, func() bool { return g.console("a") == nil }, patience, time.Millisecond)

	require.True(t, s.Admit("a", port))
	three := dial(t, port)
	three.says("third")
	require.NoError(t, s.Forget("a"))
	three.ends()
	require.False(t, s.Admit("a", port))
	require.NoError(t, s.Forget("a"))
	_, err = net.DialTimeout("tcp", "127.0.0.1:"+strconv.Itoa(port), patience)
	require.Error(t, err)
}

// connected is a client at the console of guest a.
func connected(t *testing.T, g *guests) client {
	t.Helper()
	first := free(t)
	s, _ := serve(t, g, database(t), first, first+20)
	port, err := s.Port(t.Context(), "a")
	require.NoError(t, err)
	require.True(t, s.Admit("a", port))
	return dial(t, port)
}

func TestGuestThatReboots(t *testing.T) {
	t.Parallel()
	g := newGuests()
	c := connected(t, g)
	c.says("before")
	g.fail("a", errDown)
	require.NoError(t, g.console("a").Close())
	require.Eventually(t, func() bool { return g.denials() > 1 }, patience, time.Millisecond, "it is tried again")
	g.fail("a", nil)
	require.Eventually(t, func() bool { return g.console("a") != nil }, patience, time.Millisecond)
	c.says("after")

	g.fail("a", errGone)
	require.NoError(t, g.console("a").Close())
	require.Contains(t, c.ends(), "not available")
}

func TestSlowClientIsCutOff(t *testing.T) {
	t.Parallel()
	g := newGuests()
	c := connected(t, g)
	c.says("hello")
	console := g.console("a")
	flood := []byte(strings.Repeat("x", chunk))
	deadline := time.Now().Add(patience)
	for console == g.console("a") && time.Now().Before(deadline) {
		if _, err := console.w.Write(flood); err != nil {
			break
		}
	}
	require.Nil(t, g.console("a"), "the guest's output waits for nobody")
}

func TestPortsSurviveARestart(t *testing.T) {
	t.Parallel()
	g, db := newGuests(), database(t)
	first := free(t)
	s, stop := serve(t, g, db, first, first+20)
	a, err := s.Port(t.Context(), "a")
	require.NoError(t, err)
	b, err := s.Port(t.Context(), "b")
	require.NoError(t, err)
	require.True(t, s.Admit("a", a))
	c := dial(t, a)
	c.says("hello")
	stop()
	c.ends()

	thief, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(b))
	require.NoError(t, err)
	defer thief.Close()
	s, _ = serve(t, g, db, first, first+20)
	again, err := s.Port(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, a, again)
	require.True(t, s.Admit("a", a))
	dial(t, a).says("hello again")
	moved, err := s.Port(t.Context(), "b")
	require.NoError(t, err)
	require.NotEqual(t, b, moved, "its port was taken meanwhile")
}

func TestNoPortIsFree(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	number := taken.Addr().(*net.TCPAddr).Port
	s, stop := serve(t, newGuests(), database(t), number, number)
	_, err = s.Port(t.Context(), "a")
	require.ErrorIs(t, err, ErrNoPort)
	stop()
	_, err = s.Port(t.Context(), "a")
	require.ErrorIs(t, err, context.Canceled)

	never := New(Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = never.Port(ctx, "a")
	require.ErrorIs(t, err, context.DeadlineExceeded, "one that does not run gives none")
}
