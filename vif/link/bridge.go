package link

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Bridge is a wanted Linux bridge.
type Bridge struct {
	Name string
	// NoAgeing forgets no address, which with two ports means: forget at once, flood.
	// For the bridge of one port only: it avoids loss in migrations (os-vif bug
	// 1715317) and would flood an ordinary bridge (bug 1837252).
	NoAgeing bool
	// Alias marks the bridge of one port as its instance's; "": it is nobody's alone.
	Alias string
}

// EnsureBridge makes the bridge if it is missing: no spanning tree, no forward
// delay, no multicast snooping, no IPv6 address of its own, no answer to ARP for
// other addresses of the host (vif_plug_linux_bridge/linux_net.py:_ensure_bridge_privileged,
// vif_plug_ovs/linux_net.py:ensure_bridge). It leaves the bridge up. A bridge that
// exists keeps its settings, except one with NoAgeing, which is always ours.
func (n *Netlink) EnsureBridge(ctx context.Context, b Bridge) error {
	l, err := n.find(ctx, b.Name)
	if err != nil {
		return err
	}
	created := false
	if l == nil {
		err := createBridge(b)
		if err != nil && !errors.Is(err, unix.EEXIST) { // another plug, or Neutron's agent, was faster
			return fmt.Errorf("make bridge %s: %w", b.Name, err)
		}
		created = err == nil
		if l, err = n.need(ctx, b.Name); err != nil {
			return err
		}
	}
	if l.Type() != "bridge" {
		return fmt.Errorf("use %s device %s as a bridge: %w", l.Type(), b.Name, ErrForeign)
	}
	if created || b.NoAgeing {
		if err := quietBridge(b.Name); err != nil {
			return err
		}
	}
	if b.Alias != "" {
		if err := n.mark(l, b.Alias); err != nil {
			return err
		}
	}
	return n.Up(ctx, b.Name)
}

// createBridge makes a bridge with its settings in one message; the library's own
// Bridge type knows neither forward delay nor spanning tree.
func createBridge(b Bridge) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(b.Name)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(0))
	data.AddRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(0))
	data.AddRtAttr(nl.IFLA_BR_MCAST_SNOOPING, nl.Uint8Attr(0))
	if b.NoAgeing {
		data.AddRtAttr(nl.IFLA_BR_AGEING_TIME, nl.Uint32Attr(0))
	}
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// quietBridge keeps the host's own addresses out of the bridged network.
func quietBridge(name string) error {
	return errors.Join(
		disableIPv6(name),
		sysctl("ipv4", name, "arp_ignore", "1"),
		sysctl("ipv4", name, "arp_announce", "2"),
	)
}

// RemoveBridge deletes a bridge; its ports stay. A missing device is fine, one
// that is no bridge stays.
func (n *Netlink) RemoveBridge(ctx context.Context, name string) error {
	l, err := n.find(ctx, name)
	if err != nil || l == nil {
		return err
	}
	if _, ok := l.(*netlink.Bridge); !ok {
		return nil
	}
	return n.remove(l)
}
