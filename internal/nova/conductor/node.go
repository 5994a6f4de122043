package conductor

import (
	"context"
	"slices"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// ComputeNodesByHost lists the compute nodes of a host; none is no error.
func (c *Client) ComputeNodesByHost(ctx context.Context, host string) ([]*object.ComputeNode, error) {
	nodes, err := list[object.ComputeNode](ctx, c, "ComputeNodeList", "get_all_by_host", []any{host}, map[string]any{"use_slave": true})
	if exception.Is(err, "NotFound") { // ComputeHostNotFound
		return nil, nil
	}
	return nodes, err
}

// ComputeNodesByUUID lists the compute nodes with these UUIDs.
func (c *Client) ComputeNodesByUUID(ctx context.Context, uuids ...string) ([]*object.ComputeNode, error) {
	return list[object.ComputeNode](ctx, c, "ComputeNodeList", "get_all_by_uuids", []any{uuids}, nil)
}

// ComputeNodeByUUID finds a compute node, a deleted one too (the caller revives it with
// SaveComputeNode of deleted false and deleted_at nil); nil when there is none.
func (c *Client) ComputeNodeByUUID(ctx context.Context, uuid string) (*object.ComputeNode, error) {
	ctx = reqctx.With(ctx, reqctx.From(ctx).WithReadDeleted("yes"))
	return c.node(ctx, "get_by_uuid", uuid)
}

// ComputeNodeByHostAndNodename finds a compute node by names, as Zed does; nil when
// there is none.
func (c *Client) ComputeNodeByHostAndNodename(ctx context.Context, host, node string) (*object.ComputeNode, error) {
	return c.node(ctx, "get_by_host_and_nodename", host, node)
}

func (c *Client) node(ctx context.Context, method string, args ...any) (*object.ComputeNode, error) {
	n, err := get[object.ComputeNode](ctx, c, "ComputeNode", method, args, nil)
	if exception.Is(err, "NotFound") { // ComputeHostNotFound
		return nil, nil
	}
	return n, err
}

// nodeFields are the columns of a compute node that the agent owns.
var nodeFields = []string{
	"vcpus", "memory_mb", "local_gb", "vcpus_used", "memory_mb_used", "local_gb_used", "free_ram_mb", "free_disk_gb",
	"current_workload", "running_vms", "cpu_info", "hypervisor_type", "hypervisor_version", "hypervisor_hostname", "host_ip",
	"disk_available_least", "numa_topology", "supported_hv_specs", "stats", "pci_device_pools", "metrics",
}

// createFields are set besides when a compute node is made.
var createFields = []string{"uuid", "host", "cpu_allocation_ratio", "ram_allocation_ratio", "disk_allocation_ratio"}

// CreateComputeNode makes the record of a node from its typed fields; a record of the
// same UUID, deleted or not, is taken over. The failure DuplicateRecord means that
// another UUID has this host and node name.
func (c *Client) CreateComputeNode(ctx context.Context, n *object.ComputeNode) error {
	fields := slices.Concat(createFields, nodeFields)
	if c.release.SendsServiceID {
		fields = append(fields, "service_id")
	}
	return c.create(ctx, n, "ComputeNode", fields)
}

// SaveComputeNode stores changed fields of a node.
func (c *Client) SaveComputeNode(ctx context.Context, n *object.ComputeNode, changes map[string]any) error {
	if !c.release.SendsServiceID {
		changes = without(changes, "service_id")
	}
	return c.save(ctx, n, "ComputeNode", []string{"id", "uuid"}, changes, nil)
}
