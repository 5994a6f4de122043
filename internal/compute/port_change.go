package compute

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/vif"
)

// portChange is an attachment or detachment under way, as the record keeps it. What a
// crash cuts off the next start takes back or completes: in both cases the port goes.
type portChange struct {
	Attach bool   `json:"attach"`
	PortID string `json:"port_id"` // "": Neutron was asked for a port, and has not answered
	Own    bool   `json:"own"`     // the user's port: it is unbound and stays
}

// plugLive wires a port and, if the guest runs, gives it to the guest. What is in
// place already stays as it is. It changes rec without storing it.
func (m *Manager) plugLive(ctx context.Context, rec *record, v vif.VIF, running bool) error {
	link, err := m.Plugger.Plug(ctx, v)
	if err != nil {
		return fmt.Errorf("plug port %s: %w", v.PortID, err)
	}
	changer, ok := m.Driver.(driver.NICChanger)
	if !ok || !running || link.Peer == "" {
		return nil
	}
	if err := m.markHot(rec); err != nil {
		return err
	}
	err = changer.AttachNIC(ctx, rec.UUID, driver.NIC{PortID: v.PortID, Name: rec.nicName(v.PortID), Link: link})
	if errors.Is(err, driver.ErrNotRunning) { // it went down meanwhile; its next start brings the port
		return nil
	}
	return err
}

// unplugLive takes a port from the guest, running or not, and from the host.
func (m *Manager) unplugLive(ctx context.Context, rec *record, v vif.VIF) error {
	if changer, ok := m.Driver.(driver.NICChanger); ok {
		err := changer.DetachNIC(ctx, rec.UUID, v.PortID)
		switch {
		case errors.Is(err, driver.ErrNotRunning), errors.Is(err, driver.ErrNotFound):
		case err != nil:
			return err
		default:
			if err := m.markHot(rec); err != nil {
				return err
			}
		}
	}
	err := m.Plugger.Unplug(ctx, v)
	if errors.Is(err, vif.ErrUnsupported) || errors.Is(err, vif.ErrNotBound) {
		err = nil // it was never plugged
	}
	if err != nil {
		return fmt.Errorf("unplug port %s: %w", v.PortID, err)
	}
	return nil
}

// markHot notes that a guest's interfaces are no longer those of its start.
func (m *Manager) markHot(rec *record) error {
	if rec.Hot {
		return nil
	}
	rec.Hot = true
	return m.saveRecord(*rec)
}

// replug wires the ports of a guest that has stopped and whose interfaces had changed: what
// came after the start went with its network namespace, and a stopped server keeps its place
// in the network. A port that cannot be wired now is wired by the next start.
func (m *Manager) replug(ctx context.Context, uuid string) {
	rec, ok, err := m.record(uuid)
	if err == nil && (!ok || !rec.Hot) {
		return
	}
	for _, v := range rec.VIFs {
		if _, plugErr := m.Plugger.Plug(ctx, v); plugErr != nil {
			err = errors.Join(err, fmt.Errorf("plug port %s: %w", v.PortID, plugErr))
		}
	}
	if err == nil {
		rec.Hot = false
		err = m.saveRecord(rec)
	}
	if err != nil {
		reqctx.Log(ctx).WithError(err).Warning("ports of a stopped guest not plugged again")
	}
}

// releasePort gives the port of rec's change back: Neutron deletes it, or unbinds the user's,
// and everything that tells of it goes (nova/network/neutron.py:deallocate_port_for_instance).
// It may be repeated.
func (m *Manager) releasePort(ctx context.Context, inst *object.Instance, rec *record) error {
	change := rec.PortChange
	if change.Own {
		// As in Nova a port that cannot be unbound does not hold up the detachment.
		if err := m.Neutron.Unbind(ctx, inst.UUID, []string{change.PortID}, true); err != nil {
			reqctx.Log(ctx).WithField("port_id", change.PortID).WithError(err).Error("port not unbound")
		}
	} else if err := m.Neutron.DeletePort(ctx, change.PortID); err != nil {
		return err
	}
	if err := m.Conductor.DeleteVIF(ctx, change.PortID); err != nil {
		return err
	}
	gone, err := m.dropPort(ctx, inst, change.PortID)
	if err != nil {
		return err
	}
	if gone != nil {
		if err := m.dropDevice(ctx, inst, gone.Address); err != nil {
			return err
		}
	}
	rec.forget(change.PortID)
	rec.PortChange = nil
	return m.saveRecord(*rec)
}

// keepPort gives a server the port again whose detachment failed.
func (m *Manager) keepPort(ctx context.Context, rec *record, v vif.VIF) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	rec.PortChange = nil
	err := m.saveRecord(*rec)
	state, stateErr := m.powerState(ctx, rec.UUID)
	if err = errors.Join(err, stateErr); err == nil {
		err = m.plugLive(ctx, rec, v, !isOff(state))
	}
	if err != nil {
		reqctx.Log(ctx).WithField("port_id", v.PortID).WithError(err).Warning("port whose detachment failed not plugged again")
	}
}

// settlePortChange ends a change of the ports that the agent's last stop cut off. The caller
// holds the instance's lock.
func (m *Manager) settlePortChange(ctx context.Context, inst *object.Instance) error {
	rec, ok, err := m.record(inst.UUID)
	if err != nil || !ok || rec.PortChange == nil {
		return err
	}
	log := reqctx.Log(ctx).WithField("port_id", rec.PortChange.PortID)
	if rec.PortChange.PortID == "" {
		if rec.PortChange.PortID, err = m.strayPort(ctx, inst, &rec); err != nil {
			return err
		}
		if rec.PortChange.PortID == "" {
			rec.PortChange = nil
			m.endOpenEvents(ctx, inst.UUID, "attach_interface", errCutOff)
			return m.saveRecord(rec)
		}
	}
	if rec.PortChange.Attach {
		log.Warning("taking back the attachment of a port that the agent's last stop interrupted")
	} else {
		log.Warning("completing the detachment of a port that the agent's last stop interrupted")
	}
	event, outcome := "detach_interface", error(nil)
	if rec.PortChange.Attach {
		event, outcome = "attach_interface", errCutOff
	}
	for _, v := range rec.VIFs {
		if v.PortID == rec.PortChange.PortID {
			if err := m.unplugLive(ctx, &rec, v); err != nil {
				return err
			}
		}
	}
	if err := m.releasePort(ctx, inst, &rec); err != nil {
		return err
	}
	m.endOpenEvents(ctx, inst.UUID, event, outcome)
	return nil
}

// strayPort is the port that Neutron made for an attachment and that nobody heard of; ""
// if there is none.
func (m *Manager) strayPort(ctx context.Context, inst *object.Instance, rec *record) (string, error) {
	if err := m.Conductor.RefreshInfoCache(ctx, inst); err != nil {
		return "", err
	}
	ports, err := m.Neutron.Ports(ctx, inst.UUID, inst.ProjectID)
	if err != nil {
		return "", err
	}
	for i := range ports {
		id := ports[i].ID
		known := slices.ContainsFunc(rec.VIFs, func(v vif.VIF) bool { return v.PortID == id })
		if !known && inst.NetworkInfo().ByID(id) == nil {
			return id, nil
		}
	}
	return "", nil
}
