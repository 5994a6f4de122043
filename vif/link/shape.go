package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/vif"
)

// Marks by which queues are known as ours: the major number of the queue's handle, the priority of the filter.
const (
	ownMajor    = 0xca00
	ownPriority = 0xca00
)

const (
	kilobyte = 1000
	kibibyte = 1024
	// shortestBurst is what a rate needs to be reached: 10 ms of it, and not less than some large packets.
	burstsPerSecond = 100
	leastBurst      = 16 * kibibyte
)

// Shaper implements vif.Shaper by HTB queues, as libvirt does for what goes to a guest
// (src/util/virnetdevbandwidth.c:virNetDevBandwidthSet). What comes from the guest is queued too, in an ifb device that
// the host end redirects to: policing, which libvirt uses there, drops packets and costs TCP much of the rate,
// and queues inside the guest its root could take away. Not so on a plain port of Open vSwitch: what comes from the guest is the
// switch's to bound (see vif/ovs), which takes away what is queued there.
type Shaper struct{ nl *Netlink }

var _ vif.Shaper = (*Shaper)(nil)

// NewShaper returns a Shaper.
func NewShaper(nl *Netlink) *Shaper { return &Shaper{nl: nl} }

// Shape implements vif.Shaper.
func (s *Shaper) Shape(ctx context.Context, v vif.VIF) error {
	host, err := s.nl.find(ctx, v.HostDevice())
	if err != nil || host == nil {
		return err
	}
	if kind, err := v.Kind(); err == nil && kind == vif.KindOVS {
		v.Bandwidth.Out = vif.Rate{}
	}
	err = errors.Join(s.incoming(ctx, host, v.Bandwidth.In), s.outgoing(ctx, host, v))
	if err != nil {
		return fmt.Errorf("limit the bandwidth of device %s: %w", v.HostDevice(), err)
	}
	return nil
}

// Unshape implements vif.Shaper.
func (s *Shaper) Unshape(ctx context.Context, v vif.VIF) error {
	l, err := s.nl.find(ctx, vif.ShapeName(v.PortID))
	if err != nil || l == nil || l.Type() != "ifb" || otherMark(l, v.InstanceID) {
		return err
	}
	return s.nl.remove(l)
}

// incoming limits what the host end sends to the guest.
func (s *Shaper) incoming(ctx context.Context, host netlink.Link, r vif.Rate) error {
	ours, others, err := s.root(host)
	switch {
	case err != nil:
		return err
	case others:
		if r.Average > 0 {
			reqctx.Log(ctx).WithField("device", host.Attrs().Name).Info("the flavor's bandwidth limit gives way to a queue of somebody else")
		}
		return nil
	case r.Average > 0:
		return s.queue(host, r, ours)
	case ours:
		return s.nl.h.QdiscDel(&netlink.Htb{QdiscAttrs: rootOf(host)})
	}
	return nil
}

// root tells whether a device's outermost queue is ours, or somebody else's. The kernel's own has no handle.
func (s *Shaper) root(l netlink.Link) (ours, others bool, err error) {
	queues, err := s.nl.h.QdiscList(l)
	if err != nil {
		return false, false, fmt.Errorf("list queues of device %s: %w", l.Attrs().Name, err)
	}
	for _, q := range queues {
		if a := q.Attrs(); a.Parent == netlink.HANDLE_ROOT && a.Handle != 0 {
			major, _ := netlink.MajorMinor(a.Handle)
			return major == ownMajor && q.Type() == "htb", major != ownMajor || q.Type() != "htb", nil
		}
	}
	return false, false, nil
}

func rootOf(l netlink.Link) netlink.QdiscAttrs {
	return netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(ownMajor, 0), Parent: netlink.HANDLE_ROOT}
}

// queue makes a device send at a rate; there says that the queue is there, and only its rate may differ.
func (s *Shaper) queue(l netlink.Link, r vif.Rate, there bool) error {
	if !there {
		htb := netlink.NewHtb(rootOf(l))
		htb.Defcls = 1
		if err := s.nl.h.QdiscReplace(htb); err != nil {
			return fmt.Errorf("make queue: %w", err)
		}
	}
	// To the library rates are bits, bursts bytes.
	rate, ceil := uint64(r.Average)*kilobyte*8, uint64(max(r.Peak, r.Average))*kilobyte*8 //nolint:gosec // not negative
	burst := cmp.Or(r.Burst*kibibyte, max(r.Average*kilobyte/burstsPerSecond, leastBurst))
	class := netlink.NewHtbClass(netlink.ClassAttrs{
		LinkIndex: l.Attrs().Index, Parent: netlink.MakeHandle(ownMajor, 0), Handle: netlink.MakeHandle(ownMajor, 1),
	}, netlink.HtbClassAttrs{Rate: rate, Ceil: ceil, Buffer: uint32(min(burst, 1<<31)), Cbuffer: leastBurst}) //nolint:gosec // bounded
	if err := s.nl.h.ClassReplace(class); err != nil {
		return fmt.Errorf("set rate of queue: %w", err)
	}
	if there {
		return nil
	}
	leaf := netlink.NewFqCodel(netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Parent: netlink.MakeHandle(ownMajor, 1), Handle: netlink.MakeHandle(ownMajor+1, 0),
	})
	// Without it a plain queue does, only less fair; not every kernel has it.
	if err := s.nl.h.QdiscReplace(leaf); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("make fair queue: %w", err)
	}
	return nil
}

// outgoing limits what comes from the guest.
func (s *Shaper) outgoing(ctx context.Context, host netlink.Link, v vif.VIF) error {
	ours, others, err := s.ingress(host)
	switch r := v.Bandwidth.Out; {
	case err != nil:
		return err
	case others:
		if r.Average > 0 {
			reqctx.Log(ctx).WithField("device", host.Attrs().Name).Info("the flavor's bandwidth limit gives way to a filter of somebody else")
		}
		return s.Unshape(ctx, v)
	case r.Average == 0:
		if ours {
			if err := s.nl.h.QdiscDel(ingressOf(host)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) { // vswitchd was quicker
				return fmt.Errorf("remove redirection: %w", err)
			}
		}
		return s.Unshape(ctx, v)
	}
	return s.redirect(ctx, host, v)
}

// redirect queues what comes from the guest in a device of the port's own.
func (s *Shaper) redirect(ctx context.Context, host netlink.Link, v vif.VIF) error {
	name := vif.ShapeName(v.PortID)
	shaping, err := s.nl.find(ctx, name)
	if err != nil {
		return err
	}
	if shaping == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, host.Attrs().MTU
		if err := s.nl.h.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make device %s: %w", name, err)
		}
		if shaping, err = s.nl.need(ctx, name); err != nil {
			return err
		}
	}
	if shaping.Type() != "ifb" || otherMark(shaping, v.InstanceID) {
		return fmt.Errorf("use device %s: %w", name, ErrForeign)
	}
	if err := errors.Join(s.nl.mark(shaping, v.InstanceID), disableIPv6(name), s.nl.setMTU(shaping, host.Attrs().MTU)); err != nil {
		return err
	}
	there, _, err := s.root(shaping)
	if err != nil {
		return err
	}
	if err := s.queue(shaping, v.Bandwidth.Out, there); err != nil {
		return err
	}
	if err := s.nl.Up(ctx, name); err != nil {
		return err
	}
	return s.lead(host, shaping)
}

// lead makes the host end hand everything that it receives to another device, which hands it back.
func (s *Shaper) lead(host, to netlink.Link) error {
	filters, err := s.filters(host)
	if err != nil {
		return err
	}
	for _, f := range filters {
		if u, ok := f.(*netlink.U32); ok && leadsTo(u, to.Attrs().Index) {
			return nil
		}
	}
	if len(filters) > 0 { // ours, to a device that is gone
		if err := s.nl.h.QdiscDel(ingressOf(host)); err != nil {
			return fmt.Errorf("remove redirection: %w", err)
		}
	}
	if err := s.nl.h.QdiscAdd(ingressOf(host)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make ingress queue: %w", err)
	}
	err = s.nl.h.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: host.Attrs().Index, Parent: netlink.MakeHandle(0xffff, 0), Priority: ownPriority, Protocol: unix.ETH_P_ALL,
		},
		Actions: []netlink.Action{netlink.NewMirredAction(to.Attrs().Index)},
	})
	if err != nil {
		return fmt.Errorf("redirect: %w", err)
	}
	return nil
}

func leadsTo(u *netlink.U32, index int) bool {
	return slices.ContainsFunc(u.Actions, func(a netlink.Action) bool {
		m, ok := a.(*netlink.MirredAction)
		return ok && m.Ifindex == index
	})
}

func ingressOf(l netlink.Link) *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}
}

// ingress tells whether there is a redirection of ours, or a filter of somebody else's.
func (s *Shaper) ingress(host netlink.Link) (ours, others bool, err error) {
	queues, err := s.nl.h.QdiscList(host)
	if err != nil {
		return false, false, fmt.Errorf("list queues: %w", err)
	}
	if !slices.ContainsFunc(queues, func(q netlink.Qdisc) bool { return q.Attrs().Parent == netlink.HANDLE_INGRESS }) {
		return false, false, nil
	}
	filters, err := s.filters(host)
	if err != nil {
		return false, false, err
	}
	for _, f := range filters {
		if f.Attrs().Priority == ownPriority {
			ours = true
		} else {
			others = true
		}
	}
	return ours, others, nil
}

func (s *Shaper) filters(host netlink.Link) ([]netlink.Filter, error) {
	filters, err := s.nl.h.FilterList(host, netlink.MakeHandle(0xffff, 0))
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	return filters, nil
}
