package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// replyTimeout bounds the wait for the kernel's answer to one request. The kernel
// answers in microseconds, except while it takes a large namespace down.
const replyTimeout = 10 * time.Second

// dumpAttempts is how often an interrupted dump of links is asked for again
// (only kernels before 5.6 need dumps to find a link by name).
const dumpAttempts = 5

// Netlink talks to the kernel about links. Its methods may be called from
// several goroutines; one request is under way at a time.
type Netlink struct {
	h *netlink.Handle
}

// Open connects to the kernel in the network namespace of the calling process.
func Open() (*Netlink, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := h.SetSocketTimeout(replyTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	return &Netlink{h: h}, nil
}

// Close ends the connection.
func (n *Netlink) Close() { n.h.Close() }

// find returns the link of a name, or nil if there is none.
func (n *Netlink) find(ctx context.Context, name string) (netlink.Link, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("find device %s: %w", name, err)
		}
		l, err := n.h.LinkByName(name)
		var missing netlink.LinkNotFoundError
		switch {
		case err == nil:
			return l, nil
		case errors.As(err, &missing), errors.Is(err, unix.ENODEV):
			return nil, nil
		case errors.Is(err, netlink.ErrDumpInterrupted) && attempt < dumpAttempts:
			continue
		}
		return nil, fmt.Errorf("find device %s: %w", name, err)
	}
}

// checkName refuses what is no device name of Linux (net/core/dev.c:dev_valid_name);
// names come from Neutron and become parts of paths below /proc/sys.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) >= unix.IFNAMSIZ || strings.ContainsAny(name, "/: \t\r\n\v\f\x00") {
		return fmt.Errorf("invalid device name %q", name)
	}
	return nil
}

// Exists tells whether there is a device of this name.
func (n *Netlink) Exists(ctx context.Context, name string) (bool, error) {
	l, err := n.find(ctx, name)
	return l != nil, err
}

// Up sets a device up.
func (n *Netlink) Up(ctx context.Context, name string) error {
	l, err := n.need(ctx, name)
	if err != nil || l.Attrs().RawFlags&unix.IFF_UP != 0 {
		return err
	}
	if err := n.h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set device %s up: %w", name, err)
	}
	return nil
}

// Enslave makes a device a port of a bridge; one that is in another bridge moves.
func (n *Netlink) Enslave(ctx context.Context, port, bridge string) error {
	l, err := n.need(ctx, port)
	if err != nil {
		return err
	}
	br, err := n.need(ctx, bridge)
	if err != nil {
		return err
	}
	if l.Attrs().MasterIndex == br.Attrs().Index {
		return nil
	}
	if err := n.h.LinkSetMaster(l, br); err != nil {
		return fmt.Errorf("add device %s to bridge %s: %w", port, bridge, err)
	}
	return nil
}

// need is find for a device that must be there.
func (n *Netlink) need(ctx context.Context, name string) (netlink.Link, error) {
	l, err := n.find(ctx, name)
	if err == nil && l == nil {
		err = fmt.Errorf("find device %s: %w", name, unix.ENODEV)
	}
	return l, err
}

// setMTU writes the MTU of a device if it has another one.
func (n *Netlink) setMTU(l netlink.Link, mtu int) error {
	if l.Attrs().MTU == mtu {
		return nil
	}
	if err := n.h.LinkSetMTU(l, mtu); err != nil {
		return fmt.Errorf("set MTU %d of device %s: %w", mtu, l.Attrs().Name, err)
	}
	return nil
}

// remove deletes a device; one that went away meanwhile is fine.
func (n *Netlink) remove(l netlink.Link) error {
	if err := n.h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete device %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// sysctl writes a network setting of one device, unless it has that value.
// A kernel without the protocol family has nothing to set.
func sysctl(family, device, key, value string) error {
	path := filepath.Join("/proc/sys/net", family, "conf", device, key)
	old, err := os.ReadFile(path) // the device name was checked
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Stat(filepath.Join("/proc/sys/net", family, "conf", "all")); errors.Is(statErr, fs.ErrNotExist) {
			return nil
		}
	}
	if err == nil && strings.TrimSpace(string(old)) == value {
		return nil
	}
	if err == nil {
		err = os.WriteFile(path, []byte(value), 0o644) //nolint:gosec // the mode of a file that exists
	}
	if err != nil {
		return fmt.Errorf("set %s of device %s: %w", key, device, err)
	}
	return nil
}

func disableIPv6(device string) error { return sysctl("ipv6", device, "disable_ipv6", "1") }
