package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lastOutput is how long output may still come when a command has ended, from what it has left behind.
const lastOutput = time.Second

// onTerminal runs a command at a terminal of its own, of which the user's is the picture: what is typed goes there as it is, the end of a
// command or Ctrl-C included, and it has the size of the user's window. The user's own terminal never gets into a guest, which could read
// from it and write to it for as long as it likes.
func onTerminal(user *os.File, run func(terminal *os.File) error) (err error) {
	ptmx, terminal, err := openTerminal()
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	defer ptmx.Close() //nolint:errcheck // a terminal holds nothing back
	restore, err := rawMode(user)
	if err != nil {
		return errors.Join(fmt.Errorf("set up the terminal: %w", err), terminal.Close())
	}
	defer func() { err = errors.Join(err, restore()) }()

	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	done := make(chan struct{})
	var following sync.WaitGroup
	defer func() {
		close(done)
		following.Wait() // it uses the descriptor
	}()
	follow := func() {
		if size, err := unix.IoctlGetWinsize(int(user.Fd()), unix.TIOCGWINSZ); err == nil {
			_ = unix.IoctlSetWinsize(int(ptmx.Fd()), unix.TIOCSWINSZ, size) // what runs goes on at the old size
		}
	}
	follow()
	following.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-resized:
				follow()
			}
		}
	})
	go func() { _, _ = io.Copy(ptmx, user) }() // until the process ends
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		_, _ = io.Copy(user, ptmx) // EIO: nobody has the other end any more
	}()
	err = errors.Join(run(terminal), terminal.Close())
	select {
	case <-shown:
	case <-time.After(lastOutput):
	}
	return err
}

// openTerminal makes a pair: the end that programs have, and the one behind it.
func openTerminal() (ptmx, terminal *os.File, err error) {
	ptmx, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, errors.Join(err, ptmx.Close())
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, ptmx.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, errors.Join(errno, ptmx.Close())
	}
	return ptmx, os.NewFile(fd, "terminal"), nil
}

// rawMode passes on what is typed (termios(3), cfmakeraw) until restore.
func rawMode(f *os.File) (restore func() error, err error) {
	fd := int(f.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	raw := *before
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, err
	}
	return func() error { return unix.IoctlSetTermios(fd, unix.TCSETSW, before) }, nil
}

var terminalName = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._+-]*$`)

// terminalKind is the environment that tells a command what the terminal understands.
func terminalKind(name string) []string {
	if !terminalName.MatchString(name) {
		name = "vt100"
	}
	return []string{"TERM=" + name}
}
