package compute

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// Classes of nova/objects/virt_device_metadata.py.
const (
	classDevices = "InstanceDeviceMetadata"
	classNIC     = "NetworkInterfaceMetadata"
	classDisk    = "DiskMetadata"
)

// tagOf is a device tag as a nullable field.
func tagOf(tag string) *string {
	if tag == "" {
		return nil
	}
	return &tag
}

// newObject makes an object of the control plane's version.
func (m *Manager) newObject(class string, fields map[string]any) (*object.Generic, error) {
	g := &object.Generic{Header: object.New(class, m.Release.ObjectVersion(class))}
	for name, value := range fields {
		raw, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("encode %s of %s: %w", name, class, err)
		}
		g.Data[name] = raw
		g.Changes = append(g.Changes, name)
	}
	return g, nil
}

// nicDevice describes a port for the metadata service; nil for one that has neither a tag
// nor a VLAN (nova/virt/libvirt/driver.py:_build_interface_metadata). There is no bus:
// the interface of a container is on none.
func (m *Manager) nicDevice(v *object.VIF, tag string) (*object.Generic, error) {
	fields := map[string]any{"mac": v.Address, "vf_trusted": false}
	var vlan any
	if v.Details.Get("vlan", &vlan) && vlan != nil {
		number, err := strconv.Atoi(fmt.Sprint(vlan))
		if err != nil {
			return nil, fmt.Errorf("read vlan of port %s: %w", v.ID, err)
		}
		fields["vlan"] = number
	} else if tag == "" {
		return nil, nil
	}
	if tag != "" {
		fields["tags"] = []string{tag}
	}
	return m.newObject(classNIC, fields)
}

// diskDevice describes a tagged disk (nova/virt/libvirt/driver.py:_build_disk_metadata);
// nil for one without a tag.
func (m *Manager) diskDevice(b *object.BlockDeviceMapping) (*object.Generic, error) {
	if b.Tag == "" {
		return nil, nil
	}
	var serial any
	if b.VolumeID != "" {
		serial = b.VolumeID
	}
	return m.newObject(classDisk, map[string]any{"tags": []string{b.Tag}, "serial": serial})
}

// builtDevices describes the devices of a server that has just been built; nil: it has none
// that is worth telling of.
func (m *Manager) builtDevices(info object.NetworkInfo, tags map[string]string, bdms []*object.BlockDeviceMapping) (*object.Generic, error) {
	var devices []*object.Generic
	for i := range info {
		d, err := m.nicDevice(&info[i], tags[info[i].ID])
		if err != nil {
			return nil, err
		}
		if d != nil {
			devices = append(devices, d)
		}
	}
	for _, b := range bdms {
		d, err := m.diskDevice(b)
		if err != nil {
			return nil, err
		}
		if d != nil {
			devices = append(devices, d)
		}
	}
	if len(devices) == 0 {
		return nil, nil
	}
	return m.newObject(classDevices, map[string]any{"devices": devices})
}

// devices reads what is stored of an instance's devices.
func (m *Manager) devices(ctx context.Context, inst *object.Instance) ([]*object.Generic, error) {
	if err := m.Conductor.LoadInstance(ctx, inst, "device_metadata"); err != nil {
		return nil, err
	}
	return devicesOf(inst.DeviceMetadata)
}

// devicesOf are the devices of an InstanceDeviceMetadata, which may be nil.
func devicesOf(all *object.Generic) ([]*object.Generic, error) {
	if all == nil {
		return nil, nil
	}
	var devices []*object.Generic
	if raw, ok := all.Data["devices"]; ok {
		if err := json.Unmarshal(raw, &devices); err != nil {
			return nil, fmt.Errorf("decode device metadata: %w", err)
		}
	}
	return devices, nil
}

func (m *Manager) saveDevices(ctx context.Context, inst *object.Instance, devices []*object.Generic) error {
	if devices == nil {
		devices = []*object.Generic{}
	}
	all, err := m.newObject(classDevices, map[string]any{"devices": devices})
	if err != nil {
		return err
	}
	return m.Conductor.SaveInstance(ctx, inst, map[string]any{"device_metadata": all})
}

// addDevice tells the metadata service of a port that was attached, if there is anything to tell.
func (m *Manager) addDevice(ctx context.Context, inst *object.Instance, v *object.VIF, tag string) error {
	d, err := m.nicDevice(v, tag)
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
	var rest []*object.Generic
	for _, d := range devices {
		var has string
		if d.Class == classNIC && json.Unmarshal(d.Data["mac"], &has) == nil && has == mac {
			continue
		}
		rest = append(rest, d)
	}
	if len(rest) == len(devices) {
		return nil
	}
	return m.saveDevices(ctx, inst, rest)
}
