package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/rpc"
)

// addFixedIP gives a server one more address on a network (nova/compute/manager.py:add_fixed_ip_to_instance).
// The guest learns of it by DHCP.
func (m *Manager) addFixedIP(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	var networkID string
	if err := args.Decode("network_id", &networkID); err != nil {
		return nil, err
	}
	return nil, m.changeFixedIPs(ctx, inst, "create_ip", func() error {
		return m.Neutron.AddFixedIP(ctx, inst.UUID, inst.AvailabilityZone, networkID)
	})
}

// removeFixedIP takes an address from a server (nova/compute/manager.py:remove_fixed_ip_from_instance).
func (m *Manager) removeFixedIP(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	var address string
	if err := args.Decode("address", &address); err != nil {
		return nil, err
	}
	return nil, m.changeFixedIPs(ctx, inst, "delete_ip", func() error {
		return m.Neutron.RemoveFixedIP(ctx, inst.UUID, inst.AvailabilityZone, address)
	})
}

// changeFixedIPs changes a server's addresses between the two notifications, and has the API show them.
func (m *Manager) changeFixedIPs(ctx context.Context, inst *object.Instance, action string, change func() error) error {
	m.notifyInstance(ctx, inst, action, "start")
	if err := change(); err != nil {
		return networkError(inst, err)
	}
	info, err := m.refreshNetworkInfo(ctx, inst)
	if err != nil {
		return networkError(inst, err)
	}
	// Nothing changes but updated_at, for those who look for servers that changed (nova bug 1143466).
	if err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"updated_at": object.Now()}); err != nil {
		return err
	}
	m.notifyEvent(ctx, notify.Event{Action: action, Phase: "end", Instance: inst, NetworkInfo: info})
	return nil
}
