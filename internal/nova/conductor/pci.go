package conductor

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// PCIDevices lists the PCI devices that are recorded for a compute node. The agent
// passes none through; records can be left by an agent before it.
func (c *Client) PCIDevices(ctx context.Context, nodeID int) ([]*object.Generic, error) {
	return list[object.Generic](ctx, c, "PciDeviceList", "get_by_compute_node", []any{nodeID}, nil)
}
