// Package plugging plugs the ports of an instance and waits until Neutron has wired them: for network-vif-plugged events, which
// Nova hands on, and for the ports' own state where an event gets lost.
package plugging

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/openstack/neutron"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/stopwatch"
	"github.com/compute-agent/compute-agent/vif"
)

// Names of nova/objects/external_event.py.
const (
	EventVIFPlugged = "network-vif-plugged"
	EventFailed     = "failed" // a status
)

// Config is what the plugging of ports works with.
type Config struct {
	Waiters *Waiters
	Neutron *neutron.Client
	Plugger vif.Plugger

	Timeout time.Duration // [DEFAULT] vif_plugging_timeout; 0: never wait
	IsFatal bool          // [DEFAULT] vif_plugging_is_fatal
}

// Ports are the ports of an instance that Neutron's agent has to wire before the guest starts.
type Ports struct {
	c    Config
	uuid string // of the instance

	mu      sync.Mutex // guards events and plugged
	events  []*Expectation
	plugged map[string]vif.VIF // by port id
}

// New returns the ports of an instance: none yet.
func New(c Config, instanceUUID string) *Ports {
	return &Ports{c: c, uuid: instanceUUID, plugged: map[string]vif.VIF{}}
}

// Expect has Wait wait for a port. It comes before the port is bound or its device exists, for the
// event may come at any time after.
func (p *Ports) Expect(portID string) {
	if p.c.Timeout == 0 {
		return
	}
	e := p.c.Waiters.Expect(p.uuid, EventVIFPlugged, portID)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
}

// Plug wires a port, and remembers how.
func (p *Ports) Plug(ctx context.Context, v vif.VIF) (vif.Link, error) {
	link, err := p.c.Plugger.Plug(ctx, v)
	if err != nil {
		return link, fmt.Errorf("plug port %s: %w", v.PortID, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plugged[v.PortID] = v
	return link, nil
}

// Cancel stops expecting.
func (p *Ports) Cancel() {
	for _, e := range p.expected() {
		e.Cancel()
	}
}

func (p *Ports) expected() []*Expectation {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

// Wait waits until Neutron has wired every port, as vif_plugging_timeout and
// vif_plugging_is_fatal say (nova/virt/libvirt/driver.py:_create_guest_with_network).
func (p *Ports) Wait(ctx context.Context) error {
	expected := p.expected()
	if len(expected) == 0 {
		return nil
	}
	defer stopwatch.Wait(ctx, stopwatch.Plug)()
	deadline, cancel := context.WithTimeout(ctx, p.c.Timeout)
	defer cancel()
	watched, stop := context.WithCancel(deadline)
	var watcher sync.WaitGroup
	watcher.Go(func() { p.watch(watched, expected) })
	defer watcher.Wait()
	defer stop()
	for _, e := range expected {
		status, err := e.Wait(deadline)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil && status != EventFailed {
			continue
		}
		what := "port " + e.key.Tag + " was not reported up within vif_plugging_timeout (" + p.c.Timeout.String() + ")"
		if err == nil {
			what = "neutron failed to wire port " + e.key.Tag
		}
		if p.c.IsFatal {
			return exception.VirtualInterfaceCreate().WithMessage("Virtual Interface creation failed: " + what)
		}
		reqctx.Log(ctx).WithField("port_id", e.key.Tag).Warning(what + "; going on because vif_plugging_is_fatal is false")
	}
	return nil
}

// A port whose event does not come is looked at so many times within vif_plugging_timeout, every
// 10 s by default. An event comes within a second or two; only what was lost leads here.
const portLooks = 30

// replugAt are the looks that plug the port again: after half a minute by default, and ever more seldom,
// for a Neutron that is behind is not to get more work.
var replugAt = []int{3, 9, 20}

// watch stands in for what gets lost between Neutron's agent and here. The event, on its way through
// nova's API: the port's own state is what it tells of. And the port's way to that state: when the L2 agent
// and the DHCP agent report it at the same moment, either transaction still sees the other's block, and the
// port stays down until one of them reports it again (neutron/db/provisioning_blocks.py:provisioning_complete).
// The L2 agent does so for a device that is new to it. It returns when ctx ends.
func (p *Ports) watch(ctx context.Context, expected []*Expectation) {
	tick := time.NewTicker(max(p.c.Timeout/portLooks, time.Millisecond))
	defer tick.Stop()
	for look := 1; ; look++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, e := range expected {
			if !e.pending() {
				continue
			}
			log := reqctx.Log(ctx).WithField("port_id", e.key.Tag)
			port, err := p.c.Neutron.Port(ctx, e.key.Tag)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				log.WithError(err).Warning("port not looked at while waiting for it to be plugged")
			case port.Status == "ACTIVE":
				if p.c.Waiters.Deliver(p.uuid, EventVIFPlugged, e.key.Tag, "completed") {
					log.Warning("port is up although no network-vif-plugged event arrived")
				}
			case slices.Contains(replugAt, look):
				log.WithField("status", port.Status).Warning("port is not up yet; plugging it again, so that Neutron's agent reports it once more")
				if err := p.replug(ctx, e.key.Tag); err != nil {
					log.WithError(err).Error("port not plugged again")
				}
			}
		}
	}
}

// replugTime bounds what goes on although the wait has ended: the port must not stay unplugged.
const replugTime = 30 * time.Second

// replug makes a port's devices anew, under the same names. No guest has them yet.
func (p *Ports) replug(ctx context.Context, portID string) error {
	p.mu.Lock()
	v, ok := p.plugged[portID]
	p.mu.Unlock()
	if !ok {
		return nil // its turn has not come
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), replugTime)
	defer cancel()
	if err := p.c.Plugger.Unplug(ctx, v); err != nil {
		return err
	}
	_, err := p.c.Plugger.Plug(ctx, v)
	return err
}
