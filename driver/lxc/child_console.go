package lxc

import (
	"errors"
	"fmt"
	"os"

	lxc "github.com/lxc/go-lxc"
	"golang.org/x/sys/unix"
)

// consoleNumber is what liblxc calls the console among a container's terminals.
const consoleNumber = 0

// consoleChild gets a guest's console from its monitor, passes it to the agent, and holds it
// until the agent lets go.
func consoleChild(args []string) int {
	if len(args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: forkconsole LXCPATH NAME LOGFILE")
		return exitUsage
	}
	terminal, err := console(args[0], args[1], args[2])
	text, rights := []byte{0}, []byte(nil)
	if err != nil {
		text = []byte(err.Error())
	} else {
		rights = unix.UnixRights(terminal)
	}
	if sendErr := unix.Sendmsg(fdStatus, text, rights, nil, 0); sendErr != nil || err != nil {
		return exitFailed
	}
	_ = unix.Close(terminal) // the agent has its own; the end of the guest must reach it
	_ = unix.Close(fdStatus)
	var b [1]byte
	for {
		if _, err := unix.Read(fdLife, b[:]); !errors.Is(err, unix.EINTR) {
			return 0
		}
	}
}

func console(lxcPath, name, logFile string) (int, error) {
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		return 0, fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	c, err := lxc.NewContainer(name, lxcPath)
	if err != nil {
		return 0, fmt.Errorf("open container: %w", err)
	}
	if err := c.SetLogFile(logFile); err != nil {
		return 0, fmt.Errorf("set log file: %w", err)
	}
	if err := c.SetLogLevel(lxc.ERROR); err != nil {
		return 0, fmt.Errorf("set log level: %w", err)
	}
	// The connection to the monitor stays open in this process, which is what holds the console.
	terminal, err := c.ConsoleFd(consoleNumber)
	if err != nil {
		return 0, fmt.Errorf("ask the monitor for the console: %w", err)
	}
	return terminal, nil
}
