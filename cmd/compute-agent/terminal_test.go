package main

import (
	"bufio"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestOnTerminal: the command's terminal has the size of the user's, also when that changes, and what is typed at it, and the user's is as it was afterwards.
func TestOnTerminal(t *testing.T) {
	keyboard, user, err := openTerminal()
	require.NoError(t, err)
	t.Cleanup(func() { _ = keyboard.Close() }) // which ends what reads from the user
	require.NoError(t, unix.IoctlSetWinsize(int(keyboard.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 12, Col: 34}))
	mode := func() unix.Termios {
		m, err := unix.IoctlGetTermios(int(user.Fd()), unix.TCGETS)
		require.NoError(t, err)
		return *m
	}
	before := mode()
	wrong := errors.New("boom")
	err = onTerminal(user, func(terminal *os.File) error {
		require.Zero(t, mode().Lflag&(unix.ICANON|unix.ECHO|unix.ISIG), "what is typed is passed on")
		size, err := unix.IoctlGetWinsize(int(terminal.Fd()), unix.TIOCGWINSZ)
		require.NoError(t, err)
		require.Equal(t, []uint16{12, 34}, []uint16{size.Row, size.Col})
		require.NoError(t, unix.IoctlSetWinsize(int(keyboard.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 56, Col: 78}))
		require.NoError(t, unix.Kill(os.Getpid(), unix.SIGWINCH)) // which the kernel sends who has the user's terminal
		require.Eventually(t, func() bool {
			size, err := unix.IoctlGetWinsize(int(terminal.Fd()), unix.TIOCGWINSZ)
			return err == nil && size.Row == 56 && size.Col == 78
		}, time.Minute, time.Millisecond, "it follows the user's window")
		_, err = keyboard.WriteString("typed\r")
		require.NoError(t, err)
		line, err := bufio.NewReader(terminal).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "typed\n", line)
		_, err = terminal.WriteString("shown\n")
		require.NoError(t, err)
		return wrong
	})
	require.ErrorIs(t, err, wrong)
	require.Equal(t, before, mode())
	require.NoError(t, keyboard.SetReadDeadline(time.Now().Add(time.Minute)))
	r := bufio.NewReader(keyboard)
	for _, want := range []string{"typed\r\n", "shown\r\n"} { // the echo is the command's terminal's
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want, line)
	}
}

func TestTerminalKind(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"xterm-256color": "TERM=xterm-256color", "": "TERM=vt100", "a b": "TERM=vt100", "../x": "TERM=vt100"} {
		require.Equal(t, []string{want}, terminalKind(name))
	}
}
