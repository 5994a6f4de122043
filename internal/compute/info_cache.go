package compute

import (
	"context"
	"fmt"
	"sync"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/neutron"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// refreshes are the instances whose info cache somebody waits to refresh: a burst of
// events about one instance needs one refresh that begins after the last of them.
type refreshes struct {
	mu      sync.Mutex // guards waiting
	waiting map[string]bool
}

// begin tells whether the caller is to do the refresh; if not, one that is about to
// begin does it.
func (r *refreshes) begin(uuid string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting[uuid] {
		return false
	}
	r.waiting[uuid] = true
	return true
}

// started ends the wait of a refresh.
func (r *refreshes) started(uuid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.waiting, uuid)
}

// refreshNetworkInfo reads the instance's ports anew and stores them in the info
// cache (nova/network/neutron.py:get_instance_nw_info). The order of the cached
// list is kept; ports that Neutron no longer has are dropped.
//
// The cache is always read first: the one that came with a request may be older than the
// build, and knows nothing of the ports that must outlive the instance.
func (m *Manager) refreshNetworkInfo(ctx context.Context, inst *object.Instance) (object.NetworkInfo, error) {
	unlock, err := m.caches.Lock(ctx, inst.UUID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return m.refreshLocked(ctx, inst)
}

func (m *Manager) refreshLocked(ctx context.Context, inst *object.Instance) (object.NetworkInfo, error) {
	return m.refreshWith(ctx, inst, "", false)
}

// refreshWith is refreshLocked with one more port, unless added is "".
func (m *Manager) refreshWith(ctx context.Context, inst *object.Instance, added string, own bool) (object.NetworkInfo, error) {
	if err := m.Conductor.RefreshInfoCache(ctx, inst); err != nil {
		return nil, err
	}
	cached := inst.NetworkInfo()
	req := neutron.InfoRequest{InstanceUUID: inst.UUID, ProjectID: inst.ProjectID}
	for i := range cached {
		req.PortIDs = append(req.PortIDs, cached[i].ID)
		if cached[i].PreserveOnDelete {
			req.Preexisting = append(req.Preexisting, cached[i].ID)
		}
	}
	if added != "" && cached.ByID(added) == nil {
		req.PortIDs = append(req.PortIDs, added)
	}
	if own {
		req.Preexisting = append(req.Preexisting, added)
	}
	vifs, err := m.Neutron.NetworkInfo(ctx, req)
	if err != nil {
		return nil, err
	}
	info, err := m.networkInfo(vifs)
	if err != nil {
		return nil, err
	}
	return info, m.saveNetworkInfo(ctx, inst, info)
}

// refreshSoon is refreshNetworkInfo for events: of those that wait for their turn one does it.
func (m *Manager) refreshSoon(ctx context.Context, inst *object.Instance) error {
	if !m.refreshes.begin(inst.UUID) {
		return nil
	}
	unlock, err := m.caches.Lock(ctx, inst.UUID)
	m.refreshes.started(inst.UUID)
	if err != nil {
		return err
	}
	defer unlock()
	_, err = m.refreshLocked(ctx, inst)
	return err
}

// refreshBuilt brings the info cache of an instance up to date whose ports changed while it
// was being built.
func (m *Manager) refreshBuilt(ctx context.Context, uuid string) {
	inst, err := m.Conductor.InstanceByUUID(ctx, uuid)
	if err == nil && inst.Host == m.opts.Host && !leavingNova(inst) {
		err = m.refreshSoon(ctx, inst)
	}
	if err != nil && !isGone(err) {
		reqctx.Log(ctx).WithError(err).Info("info cache not refreshed")
	}
}

// addPort appends a port to the info cache and returns its entry. own: the port is the user's.
func (m *Manager) addPort(ctx context.Context, inst *object.Instance, portID string, own bool) (*object.VIF, error) {
	unlock, err := m.caches.Lock(ctx, inst.UUID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	info, err := m.refreshWith(ctx, inst, portID, own)
	if err != nil {
		return nil, err
	}
	added := info.ByID(portID)
	if added == nil {
		return nil, fmt.Errorf("port %s is gone: %w", portID, neutron.ErrPortNotFound)
	}
	return added, nil
}

// dropPort takes a port out of the info cache and returns its entry; nil: it was not there.
func (m *Manager) dropPort(ctx context.Context, inst *object.Instance, portID string) (*object.VIF, error) {
	unlock, err := m.caches.Lock(ctx, inst.UUID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := m.Conductor.RefreshInfoCache(ctx, inst); err != nil {
		return nil, err
	}
	gone := inst.NetworkInfo().ByID(portID)
	if gone == nil {
		return nil, nil
	}
	rest := make(object.NetworkInfo, 0, len(inst.NetworkInfo()))
	for _, v := range inst.NetworkInfo() {
		if v.ID != portID {
			rest = append(rest, v)
		}
	}
	return gone, m.saveNetworkInfo(ctx, inst, rest)
}

// saveNetworkInfo stores the info cache, which is where the API's addresses come from.
func (m *Manager) saveNetworkInfo(ctx context.Context, inst *object.Instance, info object.NetworkInfo) error {
	if err := m.Conductor.SaveInfoCache(ctx, inst.UUID, info); err != nil {
		return err
	}
	m.setInfoCache(inst, info)
	return nil
}

// setInfoCache puts a VIF list into the instance as this process has it.
func (m *Manager) setInfoCache(inst *object.Instance, info object.NetworkInfo) {
	inst.InfoCache = &object.InstanceInfoCache{
		Header:       object.New("InstanceInfoCache", m.Release.ObjectVersion("InstanceInfoCache")),
		InstanceUUID: inst.UUID, NetworkInfo: info,
	}
}
