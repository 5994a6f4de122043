//go:build functional

package functional

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// TestExec: a command in a guest has what is piped into "exec", or a terminal that follows the user's.
func TestExec(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	t.Run("pipe", func(t *testing.T) {
		cmd := shared.Agent.ExecCommand(within(t, time.Minute), server.ID, "sh", "-c", "wc -c; exit 7")
		cmd.Stdin = bytes.NewReader(make([]byte, 3_000_000))
		out, err := cmd.Output()
		require.Equal(t, "3000000", strings.TrimSpace(string(out)))
		require.ErrorContains(t, err, "exit status 7")
	})
	t.Run("terminal", func(t *testing.T) {
		s := atTerminal(t, 33, 77, shared.Agent.ExecCommand(within(t, time.Minute), server.ID, "sh", "-c",
			// The size comes as a signal to the command outside, what is typed behind it by another way.
			`echo $TERM; stty size; read x; echo got $x; until [ "$(stty size)" != "33 77" ]; do sleep 0.1; done; stty size; trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 1; done`))
		s.shows("33 77\r\n")
		s.resize(44, 99)
		s.types("hello\r")
		s.shows("got hello\r\n44 99\r\nready\r\n")
		s.types("\x03")
		s.shows("interrupted\r\n")
		var exit *exec.ExitError
		require.ErrorAs(t, s.cmd.Wait(), &exit)
		require.Equal(t, 3, exit.ExitCode())
		mode, err := unix.IoctlGetTermios(int(s.terminal.Fd()), unix.TCGETS)
		require.NoError(t, err)
		require.NotZero(t, mode.Lflag&unix.ICANON, "the user's terminal is as it was")
	})
}

// seat is a user's terminal with a command at it.
type seat struct {
	t              *testing.T
	ptmx, terminal *os.File
	cmd            *exec.Cmd

	mu   sync.Mutex // guards what
	what bytes.Buffer
}

func atTerminal(t *testing.T, rows, columns uint16, cmd *exec.Cmd) *seat {
	t.Helper()
	s := &seat{t: t, cmd: cmd}
	var err error
	s.ptmx, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.ptmx.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(s.ptmx.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(s.ptmx.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	s.terminal, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.terminal.Close() })
	s.resize(rows, columns)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.terminal, s.terminal, s.terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, cmd.Start())
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := s.ptmx.Read(b)
			s.mu.Lock()
			s.what.Write(b[:n])
			s.mu.Unlock()
			if err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	return s
}

func (s *seat) resize(rows, columns uint16) {
	s.t.Helper()
	require.NoError(s.t, unix.IoctlSetWinsize(int(s.ptmx.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}))
}

func (s *seat) types(text string) {
	s.t.Helper()
	_, err := s.ptmx.WriteString(text)
	require.NoError(s.t, err)
}

func (s *seat) shows(text string) {
	s.t.Helper()
	show := func() string {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.what.String()
	}
	require.Eventually(s.t, func() bool { return strings.Contains(show(), text) }, slower*20*time.Second, 50*time.Millisecond, "%q", text)
	s.t.Logf("%q", show())
}
