package conductor

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// BuildInstances hands a build back to the conductor, which tries the next host
// (nova/conductor/rpcapi.py:ComputeTaskAPI.build_instances, 1.19). args has the keys
// instances, image, filter_properties, admin_password, injected_files,
// requested_networks, security_groups, request_spec and host_lists.
func (c *Client) BuildInstances(ctx context.Context, args map[string]any) error {
	return c.rpc.Cast(ctx, computeTaskTarget, "build_instances", args)
}

// MigrateServer hands a resize back to the conductor, which tries the next host
// (ComputeTaskAPI.migrate_server, 1.20). args has the keys instance, scheduler_hint, live,
// rebuild, flavor, block_migration, disk_over_commit, reservations, clean_shutdown,
// request_spec and host_list.
func (c *Client) MigrateServer(ctx context.Context, args map[string]any) error {
	t := computeTaskTarget
	t.Version = "1.20"
	return c.rpc.Cast(ctx, t, "migrate_server", args)
}

// computeTarget is one compute host.
func computeTarget(host string) rpc.Target {
	return rpc.Target{Topic: "compute", Server: host, Version: "6.0"}
}

// CastCompute casts a method to another compute host. alt: the message goes to the topic
// compute-alt where the release serves it (nova/compute/rpcapi.py, 6.5).
func (c *Client) CastCompute(ctx context.Context, host string, alt bool, method string, args map[string]any) error {
	t := computeTarget(host)
	if alt && len(c.release.Topics) > 1 {
		t.Topic = c.release.Topics[1]
	}
	return c.rpc.Cast(ctx, t, method, args)
}

// Methods that agents call on each other, besides nova-compute's.
const (
	AgentNamespace = "compute_agent"
	AgentVersion   = "1.0"
)

// CallAgent calls a method of the agent on another host. A nova-compute there does not
// know the namespace, which is the failure UnsupportedVersion.
func (c *Client) CallAgent(ctx context.Context, host, method string, args map[string]any, result any) error {
	t := rpc.Target{Topic: "compute", Server: host, Namespace: AgentNamespace, Version: AgentVersion}
	raw, err := c.rpc.Call(ctx, t, method, args)
	if err != nil {
		return fmt.Errorf("%s on host %s: %w", method, host, err)
	}
	if err := json.Unmarshal(raw, result); err != nil {
		return fmt.Errorf("read result of %s on host %s: %w", method, host, err)
	}
	return nil
}

// UpdateInstanceInfo tells the schedulers about instances of a host; only with
// [filter_scheduler] track_instance_changes.
func (c *Client) UpdateInstanceInfo(ctx context.Context, host string, instances []*object.Instance) error {
	l := &object.InstanceList{Header: object.New("InstanceList", c.release.ObjectVersion("InstanceList")), Objects: instances}
	if err := object.Mark(l, "objects"); err != nil {
		return err
	}
	return c.rpc.Fanout(elevated(ctx), schedulerTarget, "update_instance_info", map[string]any{"host_name": host, "instance_info": l})
}

// DeleteInstanceInfo tells the schedulers that an instance left a host.
func (c *Client) DeleteInstanceInfo(ctx context.Context, host, uuid string) error {
	return c.rpc.Fanout(elevated(ctx), schedulerTarget, "delete_instance_info", map[string]any{"host_name": host, "instance_uuid": uuid})
}

// SyncInstanceInfo tells the schedulers all instances of a host, none too.
func (c *Client) SyncInstanceInfo(ctx context.Context, host string, uuids []string) error {
	if uuids == nil {
		uuids = []string{}
	}
	return c.rpc.Fanout(elevated(ctx), schedulerTarget, "sync_instance_info", map[string]any{"host_name": host, "instance_uuids": uuids})
}

// elevated gives the request administrator's rights, as the fan-outs carry them.
func elevated(ctx context.Context) context.Context {
	return reqctx.With(ctx, reqctx.From(ctx).Elevated())
}
