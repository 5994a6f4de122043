package conductor

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// BDMs lists the block device mappings of an instance.
func (c *Client) BDMs(ctx context.Context, uuid string) ([]*object.BlockDeviceMapping, error) {
	return list[object.BlockDeviceMapping](ctx, c, "BlockDeviceMappingList", "get_by_instance_uuid", []any{uuid}, nil)
}

// BDMByVolume finds the mapping of a volume that is attached to an instance. The
// failure is VolumeBDMNotFound.
func (c *Client) BDMByVolume(ctx context.Context, volumeID, uuid string) (*object.BlockDeviceMapping, error) {
	return get[object.BlockDeviceMapping](ctx, c, "BlockDeviceMapping", "get_by_volume_and_instance", []any{volumeID, uuid}, nil)
}

// SaveBDM stores changed fields of a mapping.
func (c *Client) SaveBDM(ctx context.Context, bdm *object.BlockDeviceMapping, changes map[string]any) error {
	return c.save(ctx, bdm, "BlockDeviceMapping", []string{"id", "uuid"}, changes, nil)
}

// CreateBDM makes the mapping of a volume that is about to be attached
// (nova/compute/manager.py:reserve_block_device_name).
func (c *Client) CreateBDM(ctx context.Context, bdm *object.BlockDeviceMapping) error {
	return c.create(ctx, bdm, "BlockDeviceMapping", []string{
		"source_type", "destination_type", "instance_uuid", "boot_index", "volume_id", "device_name",
		"guest_format", "disk_bus", "device_type", "tag",
	})
}

// DestroyBDM removes a mapping.
func (c *Client) DestroyBDM(ctx context.Context, bdm *object.BlockDeviceMapping) error {
	g, err := c.small(bdm, "BlockDeviceMapping", []string{"id", "uuid", "instance_uuid"}, nil)
	if err != nil {
		return err
	}
	_, _, err = c.action(ctx, g, "BlockDeviceMapping", "destroy", nil, nil)
	return err
}
