package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
	"github.com/compute-agent/compute-agent/vif"
)

// Names and states of external events (nova/objects/external_event.py).
const (
	eventNetworkChanged = "network-changed"
	eventVIFPlugged     = "network-vif-plugged"
	eventVIFUnplugged   = "network-vif-unplugged"
	eventVIFDeleted     = "network-vif-deleted"
	eventFailed         = "failed"
)

// externalInstanceEvent takes what Neutron and others say of instances on this host;
// one message may speak of several instances, deleted ones too
// (nova/compute/manager.py:external_instance_event).
func (m *Manager) externalInstanceEvent(ctx context.Context, args rpc.Args) (any, error) {
	var instances []*object.Instance
	var events []*object.InstanceExternalEvent
	if err := decodeInstances(args, &instances); err != nil {
		return nil, err
	}
	if err := args.Decode("events", &events); err != nil {
		return nil, err
	}
	byUUID := make(map[string]*object.Instance, len(instances))
	for _, inst := range instances {
		byUUID[inst.UUID] = inst
	}
	refreshed := map[string]bool{}
	for _, e := range events {
		ctx := reqctx.WithField(reqctx.WithField(ctx, "instance", e.InstanceUUID), "port_id", e.Tag)
		inst := byUUID[e.InstanceUUID]
		log := reqctx.Log(ctx).WithField("event", e.Name)
		switch e.Name {
		case eventVIFPlugged, eventVIFUnplugged:
			if !m.waiters.deliver(e.InstanceUUID, e.Name, e.Tag, e.Status) {
				log.Debug("external event that nobody waits for")
			}
		case eventNetworkChanged:
			// One refresh reads all ports: a second event in the same message adds nothing.
			if inst == nil || refreshed[e.InstanceUUID] || inst.VMState == object.VMStateDeleted {
				continue
			}
			refreshed[e.InstanceUUID] = true
			m.networkChanged(ctx, inst)
		case eventVIFDeleted:
			if inst != nil {
				m.vifDeleted(ctx, inst, e.Tag)
			}
		default:
			log.Info("external event is not for containers")
		}
	}
	return nil, nil
}

// decodeInstances accepts a plain list and an InstanceList.
func decodeInstances(args rpc.Args, into *[]*object.Instance) error {
	var list object.InstanceList
	if err := args.Decode("instances", &list); err == nil {
		*into = list.Objects
		return nil
	}
	return args.Decode("instances", into)
}

// networkChanged reads the ports anew. While the instance is being built its cache is
// the build's to write.
func (m *Manager) networkChanged(ctx context.Context, inst *object.Instance) {
	if building, err := m.isJournaled(inst.UUID); err != nil || building {
		return
	}
	if _, err := m.refreshNetworkInfo(ctx, inst); err != nil {
		reqctx.Log(ctx).WithError(err).Info("info cache not refreshed")
	}
}

// vifDeleted forgets a port that Neutron deleted under the instance.
func (m *Manager) vifDeleted(ctx context.Context, inst *object.Instance, portID string) {
	log := reqctx.Log(ctx)
	gone := inst.NetworkInfo().ByID(portID)
	if gone == nil {
		return
	}
	if err := m.Plugger.Unplug(ctx, vifOfInfo(inst.UUID, gone)); err != nil {
		log.WithError(err).Warning("deleted port not unplugged")
	}
	rest := make(object.NetworkInfo, 0, len(inst.NetworkInfo()))
	for _, v := range inst.NetworkInfo() {
		if v.ID != portID {
			rest = append(rest, v)
		}
	}
	if err := m.saveNetworkInfo(ctx, inst, rest); err != nil {
		log.WithError(err).Warning("info cache not saved")
	}
	if err := m.forgetVIF(inst.UUID, portID); err != nil {
		log.WithError(err).Warning("port not removed from the record")
	}
}

func (m *Manager) forgetVIF(uuid, portID string) error {
	rec, ok, err := m.record(uuid)
	if err != nil || !ok {
		return err
	}
	kept := make([]vif.VIF, 0, len(rec.VIFs))
	for _, v := range rec.VIFs {
		if v.PortID != portID {
			kept = append(kept, v)
		}
	}
	rec.VIFs = kept
	return m.saveRecord(rec)
}
