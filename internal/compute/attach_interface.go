package compute

import (
	"context"
	"errors"
	"fmt"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/neutron"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// attachment is one attach_interface under way. The record and Neutron learn of each step
// before the next, so that undo, and the next start after a crash, find all of it.
type attachment struct {
	m    *Manager
	inst *object.Instance
	rec  record
	want neutron.RequestedNetwork
	port *neutron.AllocatedPort // nil until Neutron has bound it
}

// attachInterface gives a server, running or not, one more port
// (nova/compute/manager.py:attach_interface).
func (m *Manager) attachInterface(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	a := &attachment{m: m, inst: inst}
	for name, into := range map[string]*string{
		"network_id": &a.want.NetworkID, "port_id": &a.want.PortID, "requested_ip": &a.want.FixedIP, "tag": &a.want.Tag,
	} {
		if _, ok := args[name]; !ok {
			continue
		}
		if err := args.Decode(name, into); err != nil {
			return nil, err
		}
	}
	var err error
	if a.rec, err = m.ownRecord(inst.UUID); err != nil {
		return nil, err
	}
	if _, ok := m.Driver.(driver.NICChanger); !ok {
		return nil, exception.AttachInterfaceNotSupported(inst.UUID)
	}
	m.notifyInstance(ctx, inst, "interface_attach", "start")
	if err := a.allocate(ctx); err != nil {
		return nil, err
	}
	added, err := a.connect(ctx)
	if err != nil {
		a.undo(ctx)
		m.notifyFailure(ctx, inst, "interface_attach", err)
		return nil, exception.InterfaceAttachFailed(inst.UUID).Because(err)
	}
	m.notifyInstance(ctx, inst, "interface_attach", "end")
	return added, nil
}

// ownRecord is the record of an instance that must be on this host.
func (m *Manager) ownRecord(uuid string) (record, error) {
	rec, ok, err := m.record(uuid)
	if err == nil && !ok {
		err = exception.InstanceNotFound(uuid)
	}
	return rec, err
}

// allocate has Neutron make the port, or take the user's, and bind it to this host.
// When it fails nothing is left.
func (a *attachment) allocate(ctx context.Context) error {
	a.rec.PortChange = &portChange{Attach: true, PortID: a.want.PortID, Own: a.want.PortID != ""}
	if err := a.m.saveRecord(a.rec); err != nil {
		return err
	}
	alloc, err := a.m.Neutron.AllocateForInstance(ctx, neutron.AllocateRequest{
		InstanceUUID: a.inst.UUID, ProjectID: a.inst.ProjectID, AvailabilityZone: a.inst.AvailabilityZone,
		Host: a.m.opts.Host, Hostname: a.inst.Hostname, Networks: []neutron.RequestedNetwork{a.want},
		AttachExternal: reqctx.From(ctx).IsAdmin,
		OnBound: func(_ context.Context, p neutron.AllocatedPort) error {
			if p.VNICType != "" && p.VNICType != "normal" { // it needs a device of its own, of which this host has none
				return exception.New("InterfaceAttachPciClaimFailed", map[string]any{"instance_uuid": a.inst.UUID})
			}
			return nil
		},
	})
	if err == nil && len(alloc.Ports) != 1 {
		err = exception.InterfaceAttachFailed(a.inst.UUID)
	}
	if err != nil {
		a.rec.PortChange = nil
		return errors.Join(attachError(a.inst, err), a.m.saveRecord(a.rec))
	}
	a.port = &alloc.Ports[0]
	return nil
}

// attachError is networkError with the classes that the API expects of an attachment
// (nova/api/openstack/compute/attach_interfaces.py:create).
func attachError(inst *object.Instance, err error) error {
	if errors.Is(err, neutron.ErrPortUpdateFailed) { // this host has no bandwidth to give away
		return exception.New("InterfaceAttachResourceAllocationFailed", map[string]any{"instance_uuid": inst.UUID}).Because(err)
	}
	return networkError(inst, err)
}

// connect takes a bound port into the books and gives it to the guest.
func (a *attachment) connect(ctx context.Context) (*object.VIF, error) {
	own := !a.port.Created
	a.rec.PortChange = &portChange{Attach: true, PortID: a.port.ID, Own: own}
	a.rec.setVIFs(append(a.rec.VIFs, a.m.vifOfPort(a.inst.UUID, a.port)))
	v := a.rec.VIFs[len(a.rec.VIFs)-1]
	if err := a.m.saveRecord(a.rec); err != nil {
		return nil, err
	}
	if err := a.m.Conductor.CreateVIF(ctx, a.port.ID, a.port.MACAddress, a.inst.UUID, tagOf(a.want.Tag)); err != nil {
		return nil, err
	}
	added, err := a.m.addPort(ctx, a.inst, a.port.ID, own)
	if err != nil {
		return nil, err
	}
	state, err := a.m.powerState(ctx, a.inst.UUID)
	if err != nil {
		return nil, err
	}
	if err := a.m.plugLive(ctx, &a.rec, v, !isOff(state)); err != nil {
		return nil, err
	}
	if err := a.m.addDevice(ctx, a.inst, added, a.want.Tag); err != nil {
		return nil, err
	}
	a.rec.PortChange = nil
	return added, a.m.saveRecord(a.rec)
}

// undo takes a failed attachment back, also when ctx has ended.
func (a *attachment) undo(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := a.m.unplugLive(ctx, &a.rec, a.m.vifOfPort(a.inst.UUID, a.port)); err != nil {
		reqctx.Log(ctx).WithError(err).WithField("port_id", a.port.ID).Warning("port of a failed attachment not unplugged")
	}
	if err := a.m.releasePort(ctx, a.inst, &a.rec); err != nil {
		reqctx.Log(ctx).WithError(err).WithField("port_id", a.port.ID).Warning("port of a failed attachment remains; the agent's next start tries again")
	}
}

// detachInterface takes a port from a server (nova/compute/manager.py:detach_interface).
func (m *Manager) detachInterface(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	var portID string
	if err := args.Decode("port_id", &portID); err != nil {
		return nil, err
	}
	// The request's list is of the time when it was made; an earlier change may have ended since.
	if err := m.Conductor.RefreshInfoCache(ctx, inst); err != nil {
		return nil, err
	}
	condemned := inst.NetworkInfo().ByID(portID)
	if condemned == nil {
		return nil, exception.PortNotFound(portID).WithMessage(fmt.Sprintf("Port %s is not attached", portID))
	}
	v, own := vifOfInfo(inst.UUID, condemned), condemned.PreserveOnDelete
	rec, err := m.ownRecord(inst.UUID)
	if err != nil {
		return nil, err
	}
	m.notifyInstance(ctx, inst, "interface_detach", "start")
	rec.PortChange = &portChange{PortID: portID, Own: own}
	if err := m.saveRecord(rec); err != nil {
		return nil, err
	}
	if err := m.unplugLive(ctx, &rec, v); err != nil {
		m.keepPort(ctx, &rec, v)
		return nil, exception.InterfaceDetachFailed(inst.UUID).Because(err)
	}
	if err := m.releasePort(ctx, inst, &rec); err != nil {
		if !leaving(ctx, err) {
			m.keepPort(ctx, &rec, v)
		}
		return nil, networkError(inst, err)
	}
	m.notifyInstance(ctx, inst, "interface_detach", "end")
	return nil, nil
}

// notifyFailure tells of an operation's failure.
func (m *Manager) notifyFailure(ctx context.Context, inst *object.Instance, action string, failure error) {
	m.Notify.Instance(ctx, notify.Event{Action: action, Phase: "error", Instance: inst, Err: novaError(inst, failure)})
}
