package link

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/compute-agent/compute-agent/vif"
)

// Device is what tells whose a device of the host is.
type Device struct {
	Name     string
	Instance string // UUID of the mark that it bears; "": none
	Held     bool   // it is a pair whose other end a guest has
}

// FreeFor tells that a device is an instance's, and that no guest has its other end.
func (d Device) FreeFor(instance string) bool { return d.Instance == instance && !d.Held }

// deviceOf reads what tells whose a device is. Only what plugging makes can bear a mark.
func deviceOf(l netlink.Link) Device {
	a := l.Attrs()
	d := Device{Name: a.Name}
	switch l.Type() {
	case "veth":
		d.Held = a.NetNsID >= 0 // see repairPeer
	case "bridge", "ifb":
	default:
		return d
	}
	if vif.IsMark(a.Alias) {
		d.Instance = a.Alias
	}
	return d
}

// Devices are all devices of the host.
func (n *Netlink) Devices(ctx context.Context) ([]Device, error) {
	for attempt := 1; ; attempt++ {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list devices: %w", err)
		}
		links, err := n.h.LinkList()
		switch {
		case err == nil:
			devices := make([]Device, 0, len(links))
			for _, l := range links {
				devices = append(devices, deviceOf(l))
			}
			return devices, nil
		case errors.Is(err, netlink.ErrDumpInterrupted) && attempt < dumpAttempts:
			continue
		}
		return nil, fmt.Errorf("list devices: %w", err)
	}
}

// Device is one device of the host; false: there is none of that name.
func (n *Netlink) Device(ctx context.Context, name string) (Device, bool, error) {
	l, err := n.find(ctx, name)
	if err != nil || l == nil {
		return Device{}, false, err
	}
	return deviceOf(l), true, nil
}

// Finder implements vif.Finder for devices: the pairs of all kinds of ports, the bridges of hybrid plug, and the devices in which
// a Shaper queues. Of a pair that waits for its guest the host end alone is listed; the other goes with it.
type Finder struct{ nl *Netlink }

var _ vif.Finder = (*Finder)(nil)

// NewFinder returns a Finder.
func NewFinder(nl *Netlink) *Finder { return &Finder{nl: nl} }

// Marked implements vif.Finder.
func (f *Finder) Marked(ctx context.Context) ([]vif.Marked, error) {
	devices, err := f.nl.Devices(ctx)
	if err != nil {
		return nil, err
	}
	var marked []vif.Marked
	for _, d := range devices {
		if d.Instance != "" {
			marked = append(marked, vif.Marked{Instance: d.Instance, What: vif.MarkedDevice, Name: d.Name, InUse: d.Held})
		}
	}
	return marked, nil
}

// RemoveMarked implements vif.Finder.
func (f *Finder) RemoveMarked(ctx context.Context, m vif.Marked) error {
	if m.What != vif.MarkedDevice || m.Instance == "" {
		return nil
	}
	l, err := f.nl.find(ctx, m.Name)
	if err != nil || l == nil {
		return err
	}
	switch d := deviceOf(l); {
	case d.Instance != m.Instance:
		return nil
	case d.Held:
		return fmt.Errorf("remove device %s: %w", m.Name, vif.ErrInUse)
	}
	return f.nl.remove(l)
}
