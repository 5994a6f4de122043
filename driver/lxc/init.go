package lxc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/fdio"
)

// initSystem says how a kind of init is asked to halt and to reboot.
type initSystem struct {
	name       string
	halt       unix.Signal
	haltName   string // as liblxc spells it
	rebootName string
	// haltCommand is run inside instead of the signal by inits that have none for it.
	haltCommand []string
}

// Signals that unix does not name: glibc keeps the first two real-time ones for itself.
const (
	sigRTMin      = unix.Signal(34)
	sigRTMinPlus3 = sigRTMin + 3
)

// The kinds of init that detectInit tells apart, with the sources of their signals.
var (
	initSystemd = initSystem{name: "systemd", halt: sigRTMinPlus3, haltName: "SIGRTMIN+3", rebootName: "SIGINT"} // systemd(1), SIGNALS
	// init/init.c:halt_reboot_pwoff: USR1 halts, USR2 powers off, TERM reboots; INT is ctrlaltdel.
	initBusybox = initSystem{name: "busybox", halt: unix.SIGUSR2, haltName: "SIGUSR2", rebootName: "SIGTERM"}
	initOpenRC  = initSystem{name: "openrc-init", halt: unix.SIGTERM, haltName: "SIGTERM", rebootName: "SIGINT"} // openrc-init.c:signal_handler
	initUpstart = initSystem{name: "upstart", halt: unix.SIGPWR, haltName: "SIGPWR", rebootName: "SIGINT"}       // power-status-changed.conf
	initDinit   = initSystem{name: "dinit", halt: unix.SIGTERM, haltName: "SIGTERM", rebootName: "SIGINT"}       // dinit(8), SIGNALS
	initS6      = initSystem{name: "s6", halt: unix.SIGUSR2, haltName: "SIGUSR2", rebootName: "SIGINT"}          // s6-svscan(8), run-image diverted signals
	// SIGPWR runs an inittab entry that stops nothing in most distributions' files, so ask through telinit's fifo.
	initSysV  = initSystem{name: "sysvinit", halt: unix.SIGPWR, haltName: "SIGPWR", rebootName: "SIGINT", haltCommand: []string{"/sbin/init", "0"}}
	initRunit = initSystem{name: "runit", halt: unix.SIGCONT, haltName: "SIGCONT", rebootName: "SIGINT", haltCommand: []string{"/sbin/init", "0"}} // runit-init(8)
	// initUnknown: liblxc's own defaults (lxccontainer.c:do_lxcapi_shutdown).
	initUnknown = initSystem{name: "unknown", halt: unix.SIGPWR, haltName: "SIGPWR", rebootName: "SIGINT"}
)

// initPath is what liblxc runs when nothing else is configured.
const initPath = "sbin/init"

// maxInitSize bounds how much of an init binary is searched for marks.
const maxInitSize = 8 << 20

// detectInit looks into a root file system for the kind of its init. An init that is
// not known, or not there, is initUnknown.
func detectInit(rootfs string) initSystem {
	kind, err := findInit(rootfs)
	if err != nil {
		return initUnknown
	}
	return kind
}

// findInit tells the kind of a root file system's init, or why there is none that
// could be executed. A tenant has filled the file system: links are resolved as the
// guest would, never out of it, and only a regular file is opened.
func findInit(rootfs string) (initSystem, error) {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return initUnknown, err
	}
	defer unix.Close(root) //nolint:errcheck // nothing was written
	// O_PATH runs no driver and waits for no fifo, whatever the file is.
	fd, err := openIn(root, initPath, unix.O_PATH)
	if err != nil {
		return initUnknown, err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return initUnknown, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0 {
		return initUnknown, errors.New("it is not an executable file")
	}
	link := fmt.Sprintf("/proc/self/fd/%d", fd)
	target, err := os.Readlink(link)
	if err != nil {
		return initUnknown, err
	}
	if kind, ok := initByName(target); ok {
		return kind, nil
	}
	// The descriptor is what was just looked at; a second lookup by name could be another file.
	f, err := os.Open(link)
	if err != nil {
		return initUnknown, err
	}
	defer f.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(f, maxInitSize))
	if err != nil {
		return initUnknown, err
	}
	return initByContent(b), nil
}

// openIn opens a path below root with links resolved inside of root (openat2(2), kernel 5.6).
func openIn(root int, name string, flags uint64) (int, error) {
	return fdio.Openat2(root, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
}

// initByName judges by the file that /sbin/init leads to.
func initByName(target string) (initSystem, bool) {
	base := path.Base(target)
	switch {
	case base == "systemd":
		return initSystemd, true
	case base == "busybox" || strings.HasPrefix(base, "busybox."):
		return initBusybox, true
	case base == "openrc-init":
		return initOpenRC, true
	case base == "upstart":
		return initUpstart, true
	case base == "runit-init":
		return initRunit, true
	case base == "dinit":
		return initDinit, true
	case strings.HasPrefix(base, "s6-"):
		return initS6, true
	case base == "sysvinit":
		return initSysV, true
	}
	return initUnknown, false
}

// initByContent judges a binary named plainly "init" by words that only one kind contains.
func initByContent(b []byte) initSystem {
	for _, m := range []struct {
		mark string
		kind initSystem
	}{
		{"BusyBox v", initBusybox},
		{"systemd.unit=", initSystemd},
		{"com.ubuntu.Upstart", initUpstart},
		{"openrc-init", initOpenRC},
		{"runit: ", initRunit},
		{"s6-linux-init", initS6}, // a script that leads to s6
		{"initctl", initSysV},
	} {
		if bytes.Contains(b, []byte(m.mark)) {
			return m.kind
		}
	}
	return initUnknown
}
