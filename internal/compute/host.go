package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// setHostEnabled mirrors the service's disabled flag into the provider's traits, where
// the scheduler looks (nova/compute/manager.py:set_host_enabled).
func (m *Manager) setHostEnabled(ctx context.Context, args rpc.Args) (any, error) {
	var enabled bool
	if err := args.Decode("enabled", &enabled); err != nil {
		return nil, err
	}
	if err := m.Tracker.SetEnabled(ctx, enabled); err != nil {
		return nil, err
	}
	if enabled {
		return "enabled", nil
	}
	return "disabled", nil
}

// hostUptime answers with the line that the uptime tool prints
// (nova/compute/manager.py:get_host_uptime).
func (m *Manager) hostUptime(ctx context.Context, _ rpc.Args) (any, error) {
	info, err := hostinfo.Read(ctx)
	if err != nil {
		return nil, err
	}
	return info.Uptime, nil
}

// injectNetworkInfo refreshes the info cache; the guest gets its addresses from DHCP
// (nova/compute/manager.py:inject_network_info).
func (m *Manager) injectNetworkInfo(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
	if _, err := m.refreshNetworkInfo(ctx, inst); err != nil {
		return nil, networkError(inst, err)
	}
	reqctx.Log(ctx).Debug("network information refreshed")
	return nil, nil
}
