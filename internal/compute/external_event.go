package compute

import (
	"context"
	"fmt"
	"time"

	"github.com/compute-agent/compute-agent/internal/compute/plugging"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// Names and states of external events (nova/objects/external_event.py).
const (
	eventNetworkChanged = "network-changed"
	eventVIFPlugged     = plugging.EventVIFPlugged
	eventVIFUnplugged   = "network-vif-unplugged"
	eventVIFDeleted     = "network-vif-deleted"
	eventVolumeExtended = "volume-extended"
	eventPowerUpdate    = "power-update"
	eventFailed         = plugging.EventFailed
)

// ports are the ports of an instance for a start on this host, to be plugged and waited for.
func (m *Manager) ports(uuid string) *plugging.Ports {
	return plugging.New(plugging.Config{
		Waiters: &m.waiters, Neutron: m.Neutron, Plugger: m.Plugger,
		Timeout: m.opts.VIFPluggingTimeout, IsFatal: m.opts.VIFPluggingIsFatal,
	}, uuid)
}

// externalInstanceEvent takes what Neutron and others say of instances on this host;
// one message may speak of several instances, deleted ones too
// (nova/compute/manager.py:external_instance_event).
func (m *Manager) externalInstanceEvent(ctx context.Context, args rpc.Args) (any, error) {
	instances, err := object.List[object.Instance](args["instances"])
	if err != nil {
		return nil, fmt.Errorf("decode argument instances: %w", err)
	}
	events, err := object.List[object.InstanceExternalEvent](args["events"])
	if err != nil {
		return nil, fmt.Errorf("decode argument events: %w", err)
	}
	byUUID := make(map[string]*object.Instance, len(instances))
	for _, inst := range instances {
		if checkUUID(inst) == nil {
			byUUID[inst.UUID] = inst
		}
	}
	// Who waits for a port must not wait for the refreshes besides.
	for _, e := range events {
		if !handled[e.Name] {
			if !m.waiters.Deliver(e.InstanceUUID, e.Name, e.Tag, e.Status) {
				reqctx.Log(eventContext(ctx, e)).Debug("external event that nobody waits for")
			}
		}
	}
	refreshed := map[string]bool{}
	for _, e := range events {
		ctx := eventContext(ctx, e)
		inst := byUUID[e.InstanceUUID]
		switch e.Name {
		case eventNetworkChanged:
			// One refresh reads all ports: a second event in the same message adds nothing.
			if inst == nil || refreshed[e.InstanceUUID] || leavingNova(inst) {
				continue
			}
			refreshed[e.InstanceUUID] = true
			m.networkChanged(ctx, inst)
		case eventVIFDeleted:
			if inst != nil && !leavingNova(inst) {
				own := &object.Instance{UUID: inst.UUID, ProjectID: inst.ProjectID} // the other events have the message's
				m.background(ctx, func(ctx context.Context) { m.vifDeleted(ctx, own, e.Tag) })
			}
		case eventVolumeExtended:
			m.refuseEvent(ctx, inst, "extend_volume", exception.New("ExtendVolumeNotSupported", nil))
		case eventPowerUpdate: // ironic's: nobody else changes a guest's power behind the agent's back
			m.refuseEvent(ctx, inst, "power_update", exception.NotImplemented("a power update from outside is not supported by the lxc driver"))
		}
	}
	return nil, nil
}

// handled are the events that ask for something. All others, whatever they are, only wake whom they find
// waiting (nova/compute/manager.py:_process_instance_event).
var handled = map[string]bool{eventNetworkChanged: true, eventVIFDeleted: true, eventVolumeExtended: true, eventPowerUpdate: true}

// refuseEvent records in the server's history that what an event asks for is not done, and leaves the server as it is.
func (m *Manager) refuseEvent(ctx context.Context, inst *object.Instance, method string, refusal error) {
	if inst == nil || leavingNova(inst) {
		return
	}
	op := operation{method: method, event: method, fault: true}
	_, err := m.perform(ctx, op, inst, nil, func(context.Context, *object.Instance, rpc.Args) (any, error) { return nil, refusal })
	reqctx.Log(ctx).WithError(err).Warning("external event refused")
}

// eventContext adds the log fields of an event.
func eventContext(ctx context.Context, e *object.InstanceExternalEvent) context.Context {
	return reqctx.WithField(reqctx.WithField(reqctx.WithField(ctx, "instance", e.InstanceUUID), "port_id", e.Tag), "event", e.Name)
}

// leavingNova tells that an instance is deleted or about to be: its ports are the delete's.
func leavingNova(inst *object.Instance) bool {
	return inst.VMState == object.VMStateDeleted || inst.TaskState == object.TaskStateDeleting
}

// networkChanged reads the ports anew. While the instance is being built its cache is
// the build's to write, and is refreshed at its end.
func (m *Manager) networkChanged(ctx context.Context, inst *object.Instance) {
	if m.journal.PortsChanged(inst.UUID) {
		return
	}
	if err := m.refreshSoon(ctx, inst); err != nil {
		reqctx.Log(ctx).WithError(err).Info("info cache not refreshed")
	}
}

// eventPatience bounds how long an event waits for the operations on its instance.
const eventPatience = 10 * time.Minute

// vifDeleted forgets a port that Neutron deleted under the instance. It may wait for long,
// and so must not hold one of the server's workers.
func (m *Manager) vifDeleted(ctx context.Context, inst *object.Instance, portID string) {
	log := reqctx.Log(ctx)
	ctx, cancel := context.WithTimeout(ctx, eventPatience)
	defer cancel()
	// The record is the lock holder's to change; a build or an operation under way ends first.
	unlock, err := m.locks.Lock(ctx, inst.UUID)
	if err != nil {
		log.WithError(err).Warning("deleted port not unplugged")
		return
	}
	defer unlock()
	gone, err := m.dropPort(ctx, inst, portID)
	if err != nil {
		log.WithError(err).Info("deleted port not removed from the info cache")
	}
	if gone == nil {
		return
	}
	rec, ok, err := m.record(inst.UUID)
	if err != nil {
		log.WithError(err).Warning("deleted port not unplugged")
		return
	}
	if !ok { // nova tells both hosts of a migration, or of an evacuation that has failed
		log.Info("Neutron deleted a port of the server, which is not here")
		return
	}
	log.Info("Neutron deleted a port of the server; taking it from the guest")
	if err := m.unplugLive(ctx, &rec, vifOfInfo(inst.UUID, gone)); err != nil {
		log.WithError(err).Warning("deleted port not unplugged")
	}
	rec.forget(portID)
	if err := m.saveRecord(rec); err != nil {
		log.WithError(err).Warning("port not removed from the record")
	}
}
