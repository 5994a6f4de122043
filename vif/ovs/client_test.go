package ovs

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	"github.com/stretchr/testify/require"
)

// tinySchema is all that the client asks of a server before its first transaction.
const tinySchema = `{"name":"Open_vSwitch","version":"8.0.0","tables":{
	"Bridge":{"isRoot":true,"columns":{"name":{"type":"string"}}},
	"Interface":{"columns":{"name":{"type":"string"},"type":{"type":"string"},"external_ids":{"type":{"key":"string","value":"string","min":0,"max":"unlimited"}}}}}}`

// fakeServer speaks as much of RFC 7047 as a client needs to connect; transact answers, or
// closes the connection if it returns "". It returns the endpoint.
func fakeServer(t *testing.T, transact func(n int) string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ovs") //nolint:usetesting // t.TempDir is too long for a socket's path, and $TMPDIR may be
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "db.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	require.NoError(t, err)
	var calls atomic.Int32
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			go serve(c, func() string { return transact(int(calls.Add(1))) })
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return "unix:" + path
}

// mute is the endpoint of a server that takes no connection from its queue.
func mute(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return "tcp:" + l.Addr().String()
}

func serve(c net.Conn, transact func() string) {
	defer c.Close()
	dec := json.NewDecoder(c)
	for {
		var req struct {
			Method string          `json:"method"`
			ID     json.RawMessage `json:"id"`
		}
		if dec.Decode(&req) != nil {
			return
		}
		result := ""
		switch req.Method {
		case "list_dbs":
			result = `["Open_vSwitch"]`
		case "get_schema":
			result = tinySchema
		case "transact":
			result = transact()
		}
		if result == "" {
			return
		}
		if _, err := io.WriteString(c, `{"id":`+string(req.ID)+`,"error":null,"result":`+result+`}`); err != nil {
			return
		}
	}
}

// run does one select on a connection.
func run(ctx context.Context, c *conn) (rows int, err error) {
	err = c.do(ctx, func(ctx context.Context, s session) error {
		results, err := s.transact(ctx, selectOp(tableBridge, nil, "name"))
		if err == nil {
			rows = len(results[0].Rows)
		}
		return err
	})
	return rows, err
}

func newConn(t *testing.T, endpoints ...string) *conn {
	t.Helper()
	c := &conn{endpoints: endpoints}
	t.Cleanup(c.close)
	return c
}

const oneRow = `[{"rows":[{"name":"br-int"}]}]`

func TestConnReconnects(t *testing.T) {
	t.Parallel()
	e := fakeServer(t, func(n int) string {
		if n <= 2 { // two connections break in the middle of a transaction
			return ""
		}
		return oneRow
	})
	c := newConn(t, "unix:/nonexistent/db.sock", e)
	rows, err := run(t.Context(), c)
	require.NoError(t, err)
	require.Equal(t, 1, rows)
	_, err = run(t.Context(), c)
	require.NoError(t, err)
}

func TestConnRepeatsConflicts(t *testing.T) {
	t.Parallel()
	const conflict = `[{"error":"constraint violation","details":"two rows of one name"}]`
	c := newConn(t, fakeServer(t, func(n int) string {
		if n < 3 {
			return conflict
		}
		return oneRow
	}))
	_, err := run(t.Context(), c)
	require.NoError(t, err)

	// The error may also come after the results, if only the commit failed.
	c = newConn(t, fakeServer(t, func(int) string { return `[{},{"error":"constraint violation","details":"late"}]` }))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	attempts := 0
	err = c.do(ctx, func(ctx context.Context, s session) error {
		_, err := s.transact(ctx, selectOp(tableBridge, nil, "name"))
		if attempts++; attempts == 3 {
			cancel() // before the pause
		}
		return err
	})
	require.ErrorIs(t, err, errConflict)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 3, attempts)
}

func TestConnReportsServersErrors(t *testing.T) {
	t.Parallel()
	calls := 0
	c := newConn(t, fakeServer(t, func(n int) string {
		calls = n
		return `[{"error":"resources exhausted","details":"disk full"}]`
	}))
	_, err := run(t.Context(), c)
	require.ErrorContains(t, err, "disk full")
	require.NotErrorIs(t, err, errConflict)
	require.Equal(t, 1, calls, "is not repeated")
}

func TestConnRespectsDeadline(t *testing.T) {
	t.Parallel()
	silent := make(chan struct{})
	defer close(silent)
	for name, endpoint := range map[string]string{
		"answers nothing": fakeServer(t, func(int) string { <-silent; return "" }),
		"says nothing":    mute(t),
		"is not there":    "unix:/nonexistent/db.sock",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		start := time.Now()
		_, err := run(ctx, newConn(t, endpoint))
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded, name)
		require.Less(t, time.Since(start), time.Minute, name)
	}
}

func TestConnRefusesForeignDatabase(t *testing.T) {
	t.Parallel()
	_, err := newConn(t, "bogus:thing").session(t.Context())
	require.ErrorContains(t, err, "[os_vif_ovs] ovsdb_connection")
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	for configured, want := range map[string][]string{
		"":                   {"unix:/run/openvswitch/db.sock"},
		"tcp:127.0.0.1:6640": {"unix:/run/openvswitch/db.sock", "tcp:127.0.0.1:6640"},
		"unix:/srv/db.sock":  {"unix:/srv/db.sock"},
	} {
		require.Equal(t, want, Endpoints(configured))
	}
}

func TestIsLost(t *testing.T) {
	t.Parallel()
	require.True(t, isLost(io.ErrUnexpectedEOF))
	require.True(t, isLost(&net.OpError{Op: "write", Err: errors.New("reset")}))
	require.False(t, isLost(nil))
	require.False(t, isLost(context.Canceled))
	require.False(t, isLost(checkResults([]ovsdb.OperationResult{{Error: "timed out"}}, []ovsdb.Operation{{}})))
}
