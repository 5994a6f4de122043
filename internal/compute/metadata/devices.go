package metadata

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
)

// Classes of nova/objects/virt_device_metadata.py.
const (
	classDevices = "InstanceDeviceMetadata"
	classNIC     = "NetworkInterfaceMetadata"
	classDisk    = "DiskMetadata"
)

// newObject makes an object of a release's version.
func newObject(r release.Release, class string, fields map[string]any) (*object.Generic, error) {
	g := &object.Generic{Header: object.New(class, r.ObjectVersion(class))}
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

// DescribeNIC describes a port for the metadata service; nil for one that has neither a tag
// nor a VLAN (nova/virt/libvirt/driver.py:_build_interface_metadata). There is no bus:
// the interface of a container is on none.
func DescribeNIC(r release.Release, v *object.VIF, tag string) (*object.Generic, error) {
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
	return newObject(r, classNIC, fields)
}

// diskDevice describes a tagged disk (nova/virt/libvirt/driver.py:_build_disk_metadata);
// nil for one without a tag.
func diskDevice(r release.Release, b *object.BlockDeviceMapping) (*object.Generic, error) {
	if b.Tag == "" {
		return nil, nil
	}
	var serial any
	if b.VolumeID != "" {
		serial = b.VolumeID
	}
	return newObject(r, classDisk, map[string]any{"tags": []string{b.Tag}, "serial": serial})
}

// DescribeDevices describes the devices of a server that has just been built; nil: it has none
// that is worth telling of.
func DescribeDevices(r release.Release, info object.NetworkInfo, tags map[string]string, bdms []*object.BlockDeviceMapping) (*object.Generic, error) {
	var devices []*object.Generic
	for i := range info {
		d, err := DescribeNIC(r, &info[i], tags[info[i].ID])
		if err != nil {
			return nil, err
		}
		if d != nil {
			devices = append(devices, d)
		}
	}
	for _, b := range bdms {
		d, err := diskDevice(r, b)
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
	return PackDevices(r, devices)
}

// PackDevices makes the InstanceDeviceMetadata of some devices.
func PackDevices(r release.Release, devices []*object.Generic) (*object.Generic, error) {
	if devices == nil {
		devices = []*object.Generic{}
	}
	return newObject(r, classDevices, map[string]any{"devices": devices})
}

// UnpackDevices gives the devices of an InstanceDeviceMetadata, which may be nil.
func UnpackDevices(all *object.Generic) ([]*object.Generic, error) {
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

// WithoutNIC are devices without the interface of an address (nova/network/neutron.py:_delete_nic_metadata).
func WithoutNIC(devices []*object.Generic, mac string) []*object.Generic {
	var rest []*object.Generic
	for _, d := range devices {
		var has string
		if d.Class == classNIC && json.Unmarshal(d.Data["mac"], &has) == nil && has == mac {
			continue
		}
		rest = append(rest, d)
	}
	return rest
}
