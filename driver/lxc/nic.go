package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
)

// The files by which a guest, its monitor and the driver agree on interfaces that changed
// after the start. They are in the container's directory, where only root writes.
const (
	// nicsChanged: the monitor's idea of the guest's interfaces is of the past.
	nicsChanged = "interfaces-changed"
	// rebootWanted: the guest asked to be rebooted, and its monitor gave up.
	rebootWanted = "reboot-wanted"
	// preStart is the hook that makes it give up.
	preStart = "pre-start"
)

// preStartScript runs as root before every start and every reboot inside. A monitor reboots a
// guest with the interfaces that it was started with (lxccontainer.c:do_lxcapi_start); one that
// is gone would fail the reboot, one that was added would be lost with the guest's network
// namespace. So the monitor leaves the reboot of such a guest to the agent.
const preStartScript = `#!/bin/sh
dir=${0%/*}
[ -e "$dir/` + nicsChanged + `" ] || exit 0
: > "$dir/` + rebootWanted + `"
echo "the guest's interfaces changed since it was started; the agent starts it again" >&2
exit 1
`

// linkTimeout bounds the wait for the kernel's answer about one link.
const linkTimeout = 10 * time.Second

var _ driver.NICChanger = (*Driver)(nil)

// AttachNIC implements driver.NICChanger. Nothing of liblxc takes part: its own
// attach forks and enters the guest, while a link can be given away from the host.
func (d *Driver) AttachNIC(ctx context.Context, uuid string, nic driver.NIC) error {
	rec, err := d.load(uuid)
	if err != nil {
		return err
	}
	if err := d.attachNIC(ctx, rec, nic); err != nil {
		return fmt.Errorf("attach port %s to instance %s: %w", nic.PortID, uuid, err)
	}
	return nil
}

func (d *Driver) attachNIC(ctx context.Context, rec record, nic driver.NIC) error {
	g, err := d.settled(ctx, rec.Spec.Name)
	if err != nil {
		return err
	}
	if g.init == 0 {
		return driver.ErrNotRunning
	}
	if nic.Link.Peer == "" {
		return nil
	}
	if err := validateNICs([]driver.NIC{nic}); err != nil {
		return err
	}
	ns, err := d.netns(rec, g)
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // nothing was written
	if err := d.markNICs(rec); err != nil {
		return err
	}
	return give(nic, int(ns.Fd()))
}

// DetachNIC implements driver.NICChanger. The link itself goes when its host end does,
// wherever the guest has put the other.
func (d *Driver) DetachNIC(ctx context.Context, uuid, _ string) error {
	rec, err := d.load(uuid)
	if err != nil {
		return err
	}
	g, err := d.settled(ctx, rec.Spec.Name)
	if err != nil {
		return fmt.Errorf("detach port from instance %s: %w", uuid, err)
	}
	if !g.running() {
		return fmt.Errorf("detach port from instance %s: %w", uuid, driver.ErrNotRunning)
	}
	return d.markNICs(rec)
}

// netns opens the network namespace of a guest, and makes sure that it is the guest's.
func (d *Driver) netns(rec record, g guest) (*os.File, error) {
	p, err := openProcess(g.init, func() bool { return inGroup(g.init, payload(rec.Spec.Name)) })
	if err != nil {
		return nil, err
	}
	defer p.close()
	if slices.Contains(sharedNamespaces(g.init, rec.Spec.Limits.Privileged), "net") {
		return nil, errors.New("the guest is in the host's network namespace")
	}
	ns, err := os.Open(procFile(g.init, "ns/net"))
	if err != nil {
		return nil, fmt.Errorf("open the guest's network namespace: %w", err)
	}
	if p.exited() { // the number may be another process's by now
		_ = ns.Close()
		return nil, driver.ErrNotRunning
	}
	return ns, nil
}

// give moves a link from the host to a network namespace, where it gets its name and
// address and is set up: one message, of which the kernel does the move first
// (net/core/rtnetlink.c:do_setlink). A name that the guest uses for something else makes it fail,
// and the link is the guest's then: its other end has to be deleted.
func give(nic driver.NIC, ns int) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(linkTimeout); err != nil {
		return fmt.Errorf("set netlink timeout: %w", err)
	}
	link, err := h.LinkByName(nic.Link.Peer)
	if err != nil {
		return fmt.Errorf("find device %s: %w", nic.Link.Peer, err)
	}
	index := link.Attrs().Index
	if nic.Link.MAC != "" {
		mac, err := net.ParseMAC(nic.Link.MAC)
		if err != nil {
			return err
		}
		if err := h.LinkSetHardwareAddr(link, mac); err != nil {
			return fmt.Errorf("set address of device %s: %w", nic.Link.Peer, err)
		}
	}
	if nic.Link.MTU > 0 {
		if err := h.LinkSetMTU(link, nic.Link.MTU); err != nil {
			return fmt.Errorf("set MTU of device %s: %w", nic.Link.Peer, err)
		}
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index) //nolint:gosec // the kernel's own number
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(nic.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns)))) //nolint:gosec // descriptors are small
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("give device %s to the guest as %s: %w", nic.Link.Peer, nic.Name, err)
	}
	return nil
}

func (d *Driver) markFile(rec record, mark string) string {
	return filepath.Join(d.containerDir(rec.Spec.Name), mark)
}

// markNICs tells the pre-start hook that the monitor must not reboot the guest by itself.
func (d *Driver) markNICs(rec record) error {
	return writeFile(d.markFile(rec, nicsChanged), nil, true)
}

// prepareStart writes the hook and makes it let the next start pass.
func (d *Driver) prepareStart(rec record) error {
	if err := writeFile(d.markFile(rec, preStart), []byte(preStartScript), false); err != nil {
		return err
	}
	return d.unmark(rec, nicsChanged)
}

// unmark takes marks away; one that is missing is gone already.
func (d *Driver) unmark(rec record, marks ...string) error {
	for _, mark := range marks {
		if err := os.Remove(d.markFile(rec, mark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove mark: %w", err)
		}
	}
	return nil
}

// wantsReboot tells whether a guest that is down was about to reboot.
func (d *Driver) wantsReboot(rec record) bool {
	_, err := os.Lstat(d.markFile(rec, rebootWanted))
	return err == nil
}
