package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/compute/metadata"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// tagOf is a device tag as a nullable field.
func tagOf(tag string) *string {
	if tag == "" {
		return nil
	}
	return &tag
}

// devices reads what is stored of an instance's devices.
func (m *Manager) devices(ctx context.Context, inst *object.Instance) ([]*object.Generic, error) {
	if err := m.Conductor.LoadInstance(ctx, inst, "device_metadata"); err != nil {
		return nil, err
	}
	return metadata.UnpackDevices(inst.DeviceMetadata)
}

func (m *Manager) saveDevices(ctx context.Context, inst *object.Instance, devices []*object.Generic) error {
	all, err := metadata.PackDevices(m.Release, devices)
	if err != nil {
		return err
	}
	return m.Conductor.SaveInstance(ctx, inst, map[string]any{"device_metadata": all})
}

// addDevice tells the metadata service of a port that was attached, if there is anything to tell.
func (m *Manager) addDevice(ctx context.Context, inst *object.Instance, v *object.VIF, tag string) error {
	d, err := metadata.DescribeNIC(m.Release, v, tag)
	if err != nil || d == nil {
		return err
	}
	devices, err := m.devices(ctx, inst)
	if err != nil {
		return err
	}
	return m.saveDevices(ctx, inst, append(devices, d))
}

// dropDevice forgets the interface of an address (nova/network/neutron.py:_delete_nic_metadata).
func (m *Manager) dropDevice(ctx context.Context, inst *object.Instance, mac string) error {
	devices, err := m.devices(ctx, inst)
	if err != nil {
		return err
	}
	rest := metadata.WithoutNIC(devices, mac)
	if len(rest) == len(devices) {
		return nil
	}
	return m.saveDevices(ctx, inst, rest)
}
