package conductor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Expect is a condition of a save: the row must be in one of the states, or nothing is
// stored and the failure is UnexpectedTaskStateError (UnexpectedDeletingTaskStateError
// when the row is being deleted) or InstanceUpdateConflict. A nil list is no condition,
// a nil element is null. It is checked only if a column changes.
type Expect struct {
	VMState, TaskState []*string
}

// ExpectTask expects one of these task states; "" is no task.
func ExpectTask(states ...string) Expect { return Expect{TaskState: stateList(states)} }

// ExpectVM expects one of these vm states; "" is null.
func ExpectVM(states ...string) Expect { return Expect{VMState: stateList(states)} }

func stateList(states []string) []*string {
	out := make([]*string, 0, len(states))
	for _, s := range states {
		if s == "" {
			out = append(out, nil)
			continue
		}
		out = append(out, &s)
	}
	return out
}

// instanceIdentity is what a save must carry of an instance besides its changes.
var instanceIdentity = []string{"id", "uuid"}

// SaveInstance stores changed fields of an instance under the expected states and puts
// the refreshed row into inst. system_metadata and metadata are replaced as a whole.
//
// compute_id goes with node: where the release has the column, changes of node must
// hold it (the conductor refuses them otherwise); where it has not, it is left out.
func (c *Client) SaveInstance(ctx context.Context, inst *object.Instance, changes map[string]any, expect ...Expect) error {
	switch _, hasID := changes["compute_id"]; {
	case !c.release.SendsComputeID:
		changes = without(changes, "compute_id")
	case !hasID && has(changes, "node"):
		if changes["node"] != nil {
			return fmt.Errorf("save instance %s: node changes without compute_id", inst.UUID)
		}
		changes = maps.Clone(changes)
		changes["compute_id"] = nil
	}
	kwargs := map[string]any{}
	for _, e := range expect {
		if e.VMState != nil {
			kwargs["expected_vm_state"] = e.VMState
		}
		if e.TaskState != nil {
			kwargs["expected_task_state"] = e.TaskState
		}
	}
	return c.save(ctx, inst, "Instance", instanceIdentity, changes, kwargs)
}

func has(m map[string]any, key string) bool {
	_, ok := m[key]
	return ok
}

func without(m map[string]any, keys ...string) map[string]any {
	out := maps.Clone(m)
	for _, k := range keys {
		delete(out, k)
	}
	return out
}

// DestroyInstance marks the row and everything that hangs on it as deleted; deleted and
// deleted_at are set in inst. The failure ObjectActionError means that the server is
// no longer on the host that inst names.
func (c *Client) DestroyInstance(ctx context.Context, inst *object.Instance) error {
	g, err := c.small(inst, "Instance", []string{"id", "uuid", "host"}, nil)
	if err != nil {
		return err
	}
	updates, _, err := c.action(ctx, g, "Instance", "destroy", nil, nil)
	if err != nil {
		return err
	}
	return stored(inst, "Instance", nil, updates)
}

// DropMigrationContext removes the migration context of an instance.
func (c *Client) DropMigrationContext(ctx context.Context, inst *object.Instance) error {
	g, err := c.small(inst, "Instance", []string{"id", "uuid", "migration_context"}, nil)
	if err != nil {
		return err
	}
	updates, _, err := c.action(ctx, g, "Instance", "drop_migration_context", nil, nil)
	if err != nil {
		return err
	}
	return stored(inst, "Instance", nil, updates)
}

// attrList gives expected_attrs; always explicit, since the default differs between releases.
func attrList(attrs []string) []string {
	if attrs == nil {
		return []string{}
	}
	return attrs
}

// InstanceByUUID reads an instance: its columns and the named attributes (metadata,
// system_metadata, info_cache, flavor, …). The failure is InstanceNotFound.
func (c *Client) InstanceByUUID(ctx context.Context, uuid string, attrs ...string) (*object.Instance, error) {
	return get[object.Instance](ctx, c, "Instance", "get_by_uuid", []any{uuid}, map[string]any{"expected_attrs": attrList(attrs)})
}

// InstancesByHost lists the instances of a host.
func (c *Client) InstancesByHost(ctx context.Context, host string, attrs ...string) ([]*object.Instance, error) {
	return list[object.Instance](ctx, c, "InstanceList", "get_by_host", []any{host}, map[string]any{"expected_attrs": attrList(attrs), "use_slave": true})
}

// InstancesByHostAndNode lists the instances of one node of a host.
func (c *Client) InstancesByHostAndNode(ctx context.Context, host, node string, attrs ...string) ([]*object.Instance, error) {
	return list[object.Instance](ctx, c, "InstanceList", "get_by_host_and_node", []any{host, node}, map[string]any{"expected_attrs": attrList(attrs)})
}

// InstancesByFilters lists instances by column values (nova/db/main/api.py:
// instance_get_all_by_filters), oldest first. Deleted ones need a context with
// read_deleted "yes".
func (c *Client) InstancesByFilters(ctx context.Context, filters map[string]any, attrs ...string) ([]*object.Instance, error) {
	return list[object.Instance](ctx, c, "InstanceList", "get_by_filters", []any{filters},
		map[string]any{"sort_dir": "asc", "expected_attrs": attrList(attrs), "use_slave": true})
}

// InstancesActiveInWindow lists the instances that were on a host at some time of a period,
// deleted ones too (nova/objects/instance.py:InstanceList.get_active_by_window_joined).
func (c *Client) InstancesActiveInWindow(ctx context.Context, begin, end time.Time, host string, attrs ...string) ([]*object.Instance, error) {
	const isotime = "2006-01-02T15:04:05Z"
	return list[object.Instance](ctx, c, "InstanceList", "_get_active_by_window_joined",
		[]any{begin.UTC().Format(isotime), end.UTC().Format(isotime), nil, host, attrList(attrs)},
		map[string]any{"use_slave": true, "limit": nil, "marker": nil})
}

// RefreshInstance reads the columns of an instance again.
func (c *Client) RefreshInstance(ctx context.Context, inst *object.Instance) error {
	fresh, err := c.InstanceByUUID(ctx, inst.UUID)
	if err != nil {
		return err
	}
	return stored(inst, "Instance", nil, fresh.Data)
}

// ownLoader are the attributes that are read by a class method of their own, with the
// instance's UUID as argument (nova/objects/instance.py:_load_*), and the failure that
// means null.
var ownLoader = map[string]struct{ class, method, none string }{
	"numa_topology":     {"InstanceNUMATopology", "get_by_instance_uuid", "NumaTopologyNotFound"},
	"pci_requests":      {"InstancePCIRequests", "get_by_instance_uuid", ""},
	"pci_devices":       {"PciDeviceList", "get_by_instance_uuid", ""},
	"migration_context": {"MigrationContext", "get_by_instance_uuid", "MigrationContextNotFound"},
	"tags":              {"TagList", "get_by_resource_id", ""},
	"fault":             {"InstanceFault", "get_latest_for_instance", ""},
	"resources":         {"ResourceList", "get_by_instance_uuid", ""},
	"device_metadata":   {"InstanceDeviceMetadata", "get_by_instance_uuid", ""},
	"vcpu_model":        {"VirtCPUModel", "get_by_instance_uuid", ""},
	"trusted_certs":     {"TrustedCerts", "get_by_instance_uuid", ""},
}

// LoadInstance reads those of the named attributes that are not set in inst; of a
// deleted instance, too. Nothing missing: nothing is asked.
func (c *Client) LoadInstance(ctx context.Context, inst *object.Instance, attrs ...string) error {
	missing := slices.DeleteFunc(slices.Clone(attrs), inst.IsSet)
	if len(missing) == 0 {
		return nil
	}
	ctx = reqctx.With(ctx, reqctx.From(ctx).WithReadDeleted("yes"))
	found := map[string]json.RawMessage{}
	var joined []string
	for _, attr := range missing {
		loader, own := ownLoader[attr]
		if !own {
			joined = append(joined, attr)
			continue
		}
		raw, err := c.class(ctx, loader.class, loader.method, []any{inst.UUID}, nil)
		if failureIs(err, loader.none) {
			raw, err = json.RawMessage("null"), nil
		}
		if err != nil {
			return fmt.Errorf("load %s of instance %s: %w", attr, inst.UUID, err)
		}
		found[attr] = raw
	}
	if len(joined) > 0 {
		if err := c.loadJoined(ctx, inst, joined, found); err != nil {
			return fmt.Errorf("load %v of instance %s: %w", joined, inst.UUID, err)
		}
	}
	return stored(inst, "Instance", nil, found)
}

// loadJoined reads attributes that come with the instance's row.
func (c *Client) loadJoined(ctx context.Context, inst *object.Instance, attrs []string, found map[string]json.RawMessage) error {
	fresh, err := get[object.Instance](ctx, c, "Instance", "get_by_uuid", nil, map[string]any{"uuid": inst.UUID, "expected_attrs": attrs})
	if err != nil {
		return err
	}
	if fresh == nil {
		return errors.New("the conductor returned nothing")
	}
	wanted := slices.Clone(attrs)
	if slices.Contains(attrs, "flavor") {
		for _, also := range []string{"old_flavor", "new_flavor"} { // they come together
			if fresh.IsSet(also) && !inst.IsSet(also) {
				wanted = append(wanted, also)
			}
		}
	}
	for _, attr := range wanted {
		raw, ok := fresh.Data[attr]
		if !ok && attr == "keypairs" { // a server without keys has no such field (Instance._load_keypairs)
			if raw, err = c.noKeypairs(); err != nil {
				return err
			}
			ok = true
		}
		if !ok {
			return fmt.Errorf("%s does not come with the row", attr)
		}
		found[attr] = raw
	}
	return nil
}

func (c *Client) noKeypairs() (json.RawMessage, error) {
	none := &object.KeyPairList{Header: object.New("KeyPairList", c.release.ObjectVersion("KeyPairList"))}
	if err := object.Mark(none, "objects"); err != nil {
		return nil, err
	}
	none.Changes = nil
	return json.Marshal(none)
}
