package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrForeign tells that a device of the wanted name exists and is not ours to touch.
var ErrForeign = errors.New("device belongs to somebody else")

// Pair is the wanted veth pair of one port.
type Pair struct {
	Host  string // stays on the host
	Peer  string // waits on the host, down, until a guest takes it
	MAC   string // of the peer
	MTU   int    // of both
	Alias string // instance UUID; the mark by which the pair is known as ours
}

// PairState says what EnsurePair found or did.
type PairState struct {
	Created  bool // the pair is new: whatever was wired to the name is wired to nothing
	PeerHere bool // false: a guest holds the peer
}

// EnsurePair makes the pair so. A missing pair is made in one message with all names and
// addresses, so that udev rules find nothing to change in a second step. A pair whose peer
// has come back from a guest is set right again, whatever the guest's root did to it. If a
// guest holds the peer, only the host end is looked after.
//
// The host end is left down on creation and has IPv6 disabled, so that the host never takes
// part in the guest's network. ErrForeign if the name is taken by something else, or by the
// running guest of another instance.
func (n *Netlink) EnsurePair(ctx context.Context, p Pair) (PairState, error) {
	mac, err := net.ParseMAC(p.MAC)
	if err != nil || len(mac) != 6 {
		return PairState{}, fmt.Errorf("make pair %s: invalid MAC address %q", p.Host, p.MAC)
	}
	host, err := n.find(ctx, p.Host)
	if err != nil {
		return PairState{}, err
	}
	state := PairState{PeerHere: true}
	if host == nil {
		if host, err = n.createPair(ctx, p, mac); err != nil {
			return PairState{}, err
		}
		state.Created = true
	} else if state.PeerHere, err = n.repairPeer(ctx, host, p, mac); err != nil {
		return PairState{}, err
	}
	if err := disableIPv6(p.Host); err != nil {
		return PairState{}, err
	}
	if err := n.mark(host, p.Alias); err != nil {
		return PairState{}, err
	}
	return state, n.setMTU(host, p.MTU)
}

// mark writes the instance UUID into a device's alias.
func (n *Netlink) mark(l netlink.Link, alias string) error {
	if l.Attrs().Alias == alias {
		return nil
	}
	if err := n.h.LinkSetAlias(l, alias); err != nil {
		return fmt.Errorf("set alias of device %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// Mine tells whether a device may be treated as the instance's: false if it bears
// the mark of another one. A device that is missing or unmarked is nobody else's.
func (n *Netlink) Mine(ctx context.Context, name, alias string) (bool, error) {
	l, err := n.find(ctx, name)
	if err != nil {
		return false, err
	}
	return l == nil || !otherMark(l, alias), nil
}

func otherMark(l netlink.Link, alias string) bool {
	a := l.Attrs().Alias
	return a != "" && alias != "" && a != alias
}

// createPair makes the pair and returns its host end.
func (n *Netlink) createPair(ctx context.Context, p Pair, mac net.HardwareAddr) (netlink.Link, error) {
	if err := n.removeLeftover(ctx, p.Peer); err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = p.Host
	attrs.MTU = p.MTU
	attrs.HardwareAddr = hostMAC(mac)
	veth := netlink.NewVeth(attrs)
	veth.PeerName = p.Peer
	veth.PeerHardwareAddr = mac
	veth.PeerMTU = uint32(p.MTU) //nolint:gosec // checked by the kernel
	if err := n.h.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("make pair %s and %s: %w", p.Host, p.Peer, err)
	}
	return n.need(ctx, p.Host)
}

// removeLeftover deletes a pair end whose other end does not have its name.
func (n *Netlink) removeLeftover(ctx context.Context, name string) error {
	l, err := n.find(ctx, name)
	if err != nil || l == nil {
		return err
	}
	if l.Type() != "veth" {
		return fmt.Errorf("replace %s device %s: %w", l.Type(), name, ErrForeign)
	}
	return n.remove(l)
}

// repairPeer sets the other end of an existing pair right, if it is on the host.
func (n *Netlink) repairPeer(ctx context.Context, host netlink.Link, p Pair, mac net.HardwareAddr) (here bool, err error) {
	a := host.Attrs()
	if host.Type() != "veth" {
		return false, fmt.Errorf("use %s device %s: %w", host.Type(), p.Host, ErrForeign)
	}
	if a.NetNsID >= 0 { // the kernel names the peer's namespace only if it is another one
		if otherMark(host, p.Alias) {
			return false, fmt.Errorf("use device %s: %w: the guest of instance %s holds it", p.Host, ErrForeign, a.Alias)
		}
		return false, nil
	}
	if err := ctx.Err(); err != nil {
		return false, fmt.Errorf("find peer of device %s: %w", p.Host, err)
	}
	peer, err := n.h.LinkByIndex(a.ParentIndex)
	if err != nil {
		return false, fmt.Errorf("find peer of device %s: %w", p.Host, err)
	}
	pa := peer.Attrs()
	if pa.RawFlags&unix.IFF_UP != 0 {
		if err := n.h.LinkSetDown(peer); err != nil {
			return false, fmt.Errorf("set device %s down: %w", pa.Name, err)
		}
	}
	if pa.Name != p.Peer {
		if err := n.h.LinkSetName(peer, p.Peer); err != nil {
			return false, fmt.Errorf("rename device %s to %s: %w", pa.Name, p.Peer, err)
		}
	}
	if !bytes.Equal(pa.HardwareAddr, mac) {
		if err := n.h.LinkSetHardwareAddr(peer, mac); err != nil {
			return false, fmt.Errorf("set address of device %s: %w", p.Peer, err)
		}
	}
	return true, n.setMTU(peer, p.MTU)
}

// hostMAC derives the host end's address from the guest's, as libvirt does for tap
// devices (src/util/virnetdevtap.c:virNetDevTapCreateInBridgePort): a bridge takes
// the lowest address of its ports for its own, and fe: is never the lowest.
func hostMAC(guest net.HardwareAddr) net.HardwareAddr {
	mac := bytes.Clone(guest)
	if mac[0] == 0xfe {
		mac[0] = 0xfa
	} else {
		mac[0] = 0xfe
	}
	return mac
}

// RemovePair deletes the pair of a host end, wherever its peer is. A missing device is
// fine; one that is no veth, or that bears the mark of another instance, stays.
func (n *Netlink) RemovePair(ctx context.Context, host, alias string) error {
	l, err := n.find(ctx, host)
	if err != nil || l == nil || l.Type() != "veth" {
		return err
	}
	if otherMark(l, alias) {
		return nil
	}
	return n.remove(l)
}

// EnsurePatch makes the pair that joins a Linux bridge with an OVS bridge: both ends
// on the host, up, promiscuous, of one MTU (vif_plug_ovs/linux_net.py:create_veth_pair).
// It reports whether the pair is new.
func (n *Netlink) EnsurePatch(ctx context.Context, bridgeEnd, ovsEnd string, mtu int, alias string) (created bool, err error) {
	l, err := n.find(ctx, ovsEnd)
	if err != nil {
		return false, err
	}
	if l == nil {
		if err := n.removeLeftover(ctx, bridgeEnd); err != nil {
			return false, err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = ovsEnd
		attrs.MTU = mtu
		veth := netlink.NewVeth(attrs)
		veth.PeerName = bridgeEnd
		veth.PeerMTU = uint32(mtu) //nolint:gosec // checked by the kernel
		if err := n.h.LinkAdd(veth); err != nil {
			return false, fmt.Errorf("make pair %s and %s: %w", bridgeEnd, ovsEnd, err)
		}
		created = true
	}
	for _, name := range []string{bridgeEnd, ovsEnd} {
		if err := n.patchEnd(ctx, name, mtu, alias); err != nil {
			return created, err
		}
	}
	return created, nil
}

func (n *Netlink) patchEnd(ctx context.Context, name string, mtu int, alias string) error {
	l, err := n.need(ctx, name)
	if err != nil {
		return err
	}
	if l.Type() != "veth" {
		return fmt.Errorf("use %s device %s: %w", l.Type(), name, ErrForeign)
	}
	if err := errors.Join(n.mark(l, alias), n.setMTU(l, mtu)); err != nil {
		return err
	}
	if l.Attrs().RawFlags&unix.IFF_PROMISC == 0 {
		if err := n.h.SetPromiscOn(l); err != nil {
			return fmt.Errorf("set device %s promiscuous: %w", name, err)
		}
	}
	if err := disableIPv6(name); err != nil {
		return err
	}
	return n.Up(ctx, name)
}
