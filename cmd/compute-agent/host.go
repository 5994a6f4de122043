package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/driver/lxc"
	"github.com/compute-agent/compute-agent/internal/configdrive"
	"github.com/compute-agent/compute-agent/internal/control"
	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/internal/storage/ephemeral"
	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/bridge"
	"github.com/compute-agent/compute-agent/vif/link"
	"github.com/compute-agent/compute-agent/vif/ovs"
)

// openHost opens what is on this node, or what [DEFAULT] compute_driver has in its place.
func openHost(ctx context.Context, c *config.Config) (*host, error) {
	h := &host{}
	open := h.openContainers
	if fake, ok := c.Default.FakeHost(); ok {
		open = func(ctx context.Context, c *config.Config) error { return h.openFake(ctx, c, fake) }
	}
	if err := open(ctx, c); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

// openContainers refuses a host where guests could not run safely.
func (h *host) openContainers(ctx context.Context, c *config.Config) (err error) {
	h.measure = hostinfo.Read
	if h.info, err = h.measure(ctx); err != nil {
		return err
	}
	if h.pool, err = idPool(c); err != nil {
		return err
	}
	options := driverOptions(c)
	options.IDPool, options.Disks = h.pool, h.devices
	guests, err := lxc.New(options)
	if err != nil {
		return err
	}
	h.driver = guests
	if err := checkHost(ctx, guests); err != nil {
		return err
	}
	if err := h.openState(c); err != nil {
		return err
	}
	if h.roots, err = openRoots(ctx, c); err != nil {
		return err
	}
	disks, err := ephemeral.Open(filepath.Join(c.LXC.InstancesDir, "ephemeral"))
	if err != nil {
		return err
	}
	h.disks = disks
	for _, part := range []any{disks, guests, h.roots} {
		h.addRunner(part)
	}
	drives, err := configdrive.Open(filepath.Join(c.LXC.StateDir, "configdrive"))
	if err != nil {
		return err
	}
	h.drives = drives
	if h.shares, err = openShares(c); err != nil {
		return err
	}
	images, err := openStore(ctx, c)
	if err != nil {
		return err
	}
	h.closers = append(h.closers, func() { _ = images.Close() })
	h.images, h.control = images, &control.Local{Store: images, Fetch: imageFetcher(c, h.info.Arch)}
	return h.openSwitches(c)
}

// openSwitches opens what wires the guests' ports.
func (h *host) openSwitches(c *config.Config) error {
	netlink, err := link.Open()
	if err != nil {
		return err
	}
	h.closers = append(h.closers, netlink.Close)
	switches := ovs.New(netlink, ovs.Options{
		Endpoints: ovs.Endpoints(c.OSVIFOVS.OVSDBConnection), Bridge: c.Neutron.OVSBridge, Timeout: c.OSVIFOVS.OVSVsctlTimeout,
		MTU: c.OSVIFOVS.NetworkDeviceMTU, QoSType: c.OSVIFOVS.DefaultQoSType, Isolate: c.OSVIFOVS.IsolateVIF,
	})
	h.closers = append(h.closers, switches.Close)
	h.plugger = vif.NewSet(map[vif.Kind]vif.Plugger{
		vif.KindBridge: bridge.New(netlink), vif.KindTap: link.NewTap(netlink), vif.KindOVS: switches, vif.KindOVSHybrid: switches,
	}).ShapeWith(link.NewShaper(netlink)).FindWith(switches, link.NewFinder(netlink)) // ports before their devices
	return nil
}

// checkHost logs what is wrong with the host and refuses to run where that is fatal.
func checkHost(ctx context.Context, d *lxc.Driver) error {
	var fatal []error
	for _, check := range d.Checks(ctx) {
		for _, p := range check.Problems {
			if p.Fatal {
				fatal = append(fatal, fmt.Errorf("%s: %s", p.What, p.Remedy))
				continue
			}
			reqctx.Log(ctx).WithField("remedy", p.Remedy).Warning(p.What)
		}
	}
	return errors.Join(fatal...)
}

// Where the state says whose it is: a driver that knows nothing of the other's guests would take them for lost.
const (
	agentBucket = "agent"
	driverKey   = "driver"
)

// openState opens the agent's database, which belongs to one driver for good.
func (h *host) openState(c *config.Config) error {
	path := filepath.Join(c.LXC.StateDir, "agent.db")
	_, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fresh := err != nil
	if h.db, err = state.Open(path); err != nil {
		return err
	}
	h.closers = append(h.closers, func() { _ = h.db.Close() })
	mine, _ := h.driver.Version()
	owner, known, err := state.Get[string](h.db, agentBucket, driverKey)
	if err != nil {
		return err
	}
	switch {
	case fresh:
		owner = mine
	case !known: // by an agent that had no other
		owner = "lxc"
	}
	if owner != mine {
		return fmt.Errorf("%s has the servers of the driver %s, and [DEFAULT] compute_driver asks for %s: give each a state_path (or [lxc] state_dir) and a host of its own",
			c.LXC.StateDir, owner, mine)
	}
	if known {
		return nil
	}
	return state.Put(h.db, agentBucket, driverKey, mine)
}
