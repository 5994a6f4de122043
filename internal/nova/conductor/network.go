package conductor

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// CreateVIF records a port of an instance; tag is the user's device tag or nil. The
// address is stored with the port id, so that one MAC may occur on several networks
// (nova/network/neutron.py:_update_ports_for_instance).
func (c *Client) CreateVIF(ctx context.Context, portID, mac, instanceUUID string, tag *string) error {
	v := &object.VirtualInterface{Address: mac + "/" + portID, InstanceUUID: instanceUUID, UUID: portID}
	if tag != nil {
		v.Tag = *tag
	}
	return c.create(ctx, v, "VirtualInterface", []string{"address", "instance_uuid", "uuid", "tag"})
}

// VIFs lists the recorded ports of an instance, oldest first: the order of its NICs.
func (c *Client) VIFs(ctx context.Context, instanceUUID string) ([]*object.VirtualInterface, error) {
	return list[object.VirtualInterface](ctx, c, "VirtualInterfaceList", "get_by_instance_uuid", []any{instanceUUID}, nil)
}

// DeleteVIFs removes the records of all ports of an instance.
func (c *Client) DeleteVIFs(ctx context.Context, instanceUUID string) error {
	_, err := c.class(ctx, "VirtualInterface", "delete_by_instance_uuid", []any{instanceUUID}, nil)
	return err
}

// DeleteVIF removes the record of one port; a missing one is no error.
func (c *Client) DeleteVIF(ctx context.Context, portID string) error {
	v, err := get[object.VirtualInterface](ctx, c, "VirtualInterface", "get_by_uuid", []any{portID}, nil)
	if err != nil || v == nil {
		if exception.Is(err, "NotFound") {
			return nil
		}
		return err
	}
	g, err := c.small(v, "VirtualInterface", []string{"id", "uuid", "instance_uuid"}, nil)
	if err != nil {
		return err
	}
	_, _, err = c.action(ctx, g, "VirtualInterface", "destroy", nil, nil)
	return err
}
