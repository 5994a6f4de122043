//go:build functional

package functional

import (
	"context"
	"net"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// typist is a user at a serial console, behind nova-serialproxy.
type typist struct {
	t    *testing.T
	conn *websocket.Conn

	mu   sync.Mutex // guards the fields below
	text strings.Builder
	err  error
}

// consoleURL asks nova for the way to a server's console.
func consoleURL(t *testing.T, id string) string {
	t.Helper()
	var out struct {
		RemoteConsole struct{ Protocol, Type, URL string } `json:"remote_console"`
	}
	err := shared.Admin.Do(within(t, 20*time.Second), "POST", cloud.Compute, "/servers/"+id+"/remote-consoles",
		map[string]any{"remote_console": map[string]string{"protocol": "serial", "type": "serial"}}, &out)
	require.NoError(t, err)
	require.Contains(t, out.RemoteConsole.URL, "token=")
	return out.RemoteConsole.URL
}

// sitDown connects with a console; the subprotocol is what nova's own clients ask for.
func sitDown(t *testing.T, address string) *typist {
	t.Helper()
	conn, _, err := websocket.Dial(within(t, 20*time.Second), address, &websocket.DialOptions{Subprotocols: []string{"binary"}}) //nolint:bodyclose // the library closes it
	require.NoError(t, err)
	conn.SetReadLimit(1 << 20)
	s := &typist{t: t, conn: conn}
	t.Cleanup(func() {
		_ = conn.CloseNow()
		if t.Failed() {
			t.Logf("the console has shown %q", s.seen())
		}
	})
	go func() {
		for {
			_, b, err := conn.Read(context.Background())
			s.mu.Lock()
			s.text.Write(b)
			s.err = err
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *typist) types(line string) {
	s.t.Helper()
	require.NoError(s.t, s.conn.Write(within(s.t, 10*time.Second), websocket.MessageBinary, []byte(line+"\r")))
}

func (s *typist) seen() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *typist) sees(text string, limit time.Duration) {
	s.t.Helper()
	require.Eventually(s.t, func() bool { return strings.Contains(s.seen(), text) }, slower*limit, 50*time.Millisecond, "the console does not show %q", text)
}

// runs types a command line and waits for its answer and, behind that, for the shell to ask again: what is typed in between may get lost.
func (s *typist) runs(line, answer string) {
	s.t.Helper()
	from := len(s.seen())
	s.types(line)
	require.Eventually(s.t, func() bool {
		_, behind, answered := strings.Cut(s.seen()[from:], answer)
		return answered && strings.Contains(behind, "# ")
	}, slower*20*time.Second, 50*time.Millisecond, "the console does not show %q and a prompt", answer)
}

func (s *typist) cutOff() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}

// TestSerialConsole types a login through nova-serialproxy, as the user of a server without a network does.
func TestSerialConsole(t *testing.T) {
	server := boot(t, cloud.NewServer{Image: shared.Debian, Flavor: shared.Small, Networks: "none"})
	do(t, server.ID, "changePassword", map[string]string{"adminPass": "type-this"})
	logShows(t, server.ID, "login:", 90*time.Second)

	one := sitDown(t, consoleURL(t, server.ID))
	one.types("")
	one.sees("login:", 20*time.Second)
	one.types("root")
	one.sees("Password:", 20*time.Second)
	one.types("type-this")
	one.sees("# ", 20*time.Second)
	one.runs("echo $((6*7))-$(id -u) > /proc/1/fd/1; echo $((6*7))-$(id -u)", "42-0")
	require.NotContains(t, one.seen(), "type-this", "a password is not echoed")
	logShows(t, server.ID, "42-0", 10*time.Second) // although somebody is connected

	two := sitDown(t, consoleURL(t, server.ID))
	require.Eventually(t, one.cutOff, slower*10*time.Second, 50*time.Millisecond, "the second takes over")
	two.runs("echo second-$((1+1))", "second-2")

	// The guest outlives the agent, and so does its port; a token given before is good afterwards.
	address := consoleURL(t, server.ID)
	restartAgent(t, syscall.SIGKILL)
	require.Eventually(t, two.cutOff, slower*10*time.Second, 50*time.Millisecond)
	three := sitDown(t, address)
	three.runs("echo third-$((1+2))", "third-3")

	// A user who watches a reboot keeps the console.
	three.types("reboot")
	three.sees("login:", 90*time.Second)
	require.False(t, three.cutOff())

	act(t, server.ID, "os-stop", nil, "SHUTOFF")
	require.Eventually(t, three.cutOff, slower*30*time.Second, 100*time.Millisecond, "it ends with the guest")
}

// logShows waits until the console log of a server has a text.
func logShows(t *testing.T, id, text string, limit time.Duration) {
	t.Helper()
	eventually(t, limit, "console log with "+text, func(ctx context.Context) (bool, error) {
		log, err := shared.Admin.ConsoleLog(ctx, id, 0)
		return strings.Contains(log, text), err
	})
}

func TestConsoleLogLines(t *testing.T) {
	server := boot(t, cloud.NewServer{Networks: "none"})
	logShows(t, server.ID, "busybox: ready", 10*time.Second) // its last line
	inside(t, server.ID, "sh", "-c", "for i in $(seq 1 30); do echo line-$i; done > /dev/console")
	logShows(t, server.ID, "line-30", 10*time.Second)
	log, err := shared.Admin.ConsoleLog(within(t, 10*time.Second), server.ID, 4)
	require.NoError(t, err)
	require.Equal(t, []string{"line-28", "line-29", "line-30"}, strings.Fields(log), "the last of four pieces is behind the last newline")
}

// TestConsoleRefusals: what a container has not, and who may not connect.
func TestConsoleRefusals(t *testing.T) {
	server := boot(t, cloud.NewServer{Networks: "none"})
	for protocol, kind := range map[string]string{"vnc": "novnc", "spice": "spice-html5", "mks": "webmks"} {
		err := shared.Admin.Do(within(t, 20*time.Second), "POST", cloud.Compute, "/servers/"+server.ID+"/remote-consoles",
			map[string]any{"remote_console": map[string]string{"protocol": protocol, "type": kind}}, nil)
		require.True(t, cloud.IsStatus(err, 400), "%s: %v", protocol, err)
		require.ErrorContains(t, err, "Unavailable console type")
	}
	address, err := url.Parse(consoleURL(t, server.ID))
	require.NoError(t, err)
	address.RawQuery = "token=00000000-0000-0000-0000-000000000000"
	conn, _, err := websocket.Dial(within(t, 20*time.Second), address.String(), &websocket.DialOptions{Subprotocols: []string{"binary"}}) //nolint:bodyclose // the library closes it
	if err == nil {
		_, _, err = conn.Read(within(t, 10*time.Second))
	}
	require.Error(t, err, "a token that nobody was given")

	// Somebody on the host who knows the port gets nothing: no proxy has asked for the connection.
	port := listening(t, shared.Agent.PID())
	require.NotEmpty(t, port)
	raw, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", port), 5*time.Second)
	require.NoError(t, err)
	defer raw.Close()
	require.NoError(t, raw.SetDeadline(time.Now().Add(5*time.Second)))
	n, err := raw.Read(make([]byte, 16))
	require.Zero(t, n)
	require.Error(t, err)
}
