package resource

import (
	"context"
	"errors"
	"fmt"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Audit computes the usage from scratch and brings node and provider up to date
// (nova/compute/resource_tracker.py:update_available_resource).
func (t *Tracker) Audit(ctx context.Context) error {
	leave, err := t.auditing.enter(ctx)
	if err != nil {
		return fmt.Errorf("wait for another audit: %w", err)
	}
	defer leave()
	if err := t.measure(ctx); err != nil {
		return err
	}
	instances, migrations, err := t.count(ctx)
	if err != nil {
		return err
	}
	if t.deps.Release.PlacementBeforeNode {
		if err := t.syncProvider(ctx); err != nil {
			return err
		}
	}
	if err := t.flush(ctx); err != nil {
		return err
	}
	if !t.deps.Release.PlacementBeforeNode {
		if err := t.syncProvider(ctx); err != nil {
			return err
		}
	}
	// The books are right by now. What these two leave undone the next audit does.
	if err := errors.Join(t.repairComputeIDs(ctx, instances), t.dropDeadAllocations(ctx, migrations)); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("audit left something to the next one")
	}
	return nil
}

// count reads from the control plane what uses this host, and keeps it with what has
// changed meanwhile.
func (t *Tracker) count(ctx context.Context) ([]*object.Instance, []*object.Migration, error) {
	t.mu.Lock()
	node := t.nodeName
	t.since = &changesSince{instances: map[string]*usage{}, moves: map[string]*usage{}}
	t.mu.Unlock()
	instances, migrations, disabled, err := t.lists(ctx, node)
	var moving map[string]usage
	if err == nil {
		moving = t.movesUsage(ctx, migrations, instances)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	since := t.since
	t.since = nil
	if err != nil {
		return nil, nil, err
	}
	t.instances = make(map[string]usage, len(instances))
	for _, inst := range instances {
		if !removed(inst) {
			t.instances[inst.UUID] = usageOf(inst, inst.Flavor)
		}
	}
	for uuid, u := range since.instances {
		if u == nil {
			delete(t.instances, uuid)
		} else {
			t.instances[uuid] = *u
		}
	}
	t.migrating = moving
	for uuid, u := range since.moves {
		if u == nil {
			delete(t.migrating, uuid)
		} else {
			t.migrating[uuid] = *u
		}
	}
	if !since.enabled {
		t.disabled = disabled
	}
	return instances, migrations, nil
}

func (t *Tracker) lists(ctx context.Context, node string) (_ []*object.Instance, _ []*object.Migration, disabled bool, _ error) {
	instances, err := t.deps.Conductor.InstancesByHostAndNode(ctx, t.opts.Host, node, t.attributes("flavor", "migration_context")...)
	if err != nil {
		return nil, nil, false, fmt.Errorf("list the node's instances: %w", err)
	}
	migrations, err := t.deps.Conductor.MigrationsInProgressAndError(ctx, t.opts.Host, node)
	if err != nil {
		return nil, nil, false, fmt.Errorf("list the node's migrations: %w", err)
	}
	service, err := t.deps.Conductor.ServiceByComputeHost(ctx, t.opts.Host)
	if err != nil {
		return nil, nil, false, fmt.Errorf("look up the service record: %w", err)
	}
	return instances, migrations, service != nil && service.Disabled, nil
}

// repairComputeIDs links the node's instances to its record, as those are not that were
// made before the column (nova/compute/resource_tracker.py:_update_available_resource, from 2024.1).
func (t *Tracker) repairComputeIDs(ctx context.Context, instances []*object.Instance) error {
	if !t.deps.Release.SendsServiceID {
		return nil
	}
	t.mu.Lock()
	id := t.computeID
	t.mu.Unlock()
	var errs []error
	for _, inst := range instances {
		if inst.ComputeID != nil && *inst.ComputeID == id {
			continue
		}
		if err := t.deps.Conductor.SaveInstance(ctx, inst, map[string]any{"compute_id": id}); err != nil && !exception.Is(err, "InstanceNotFound") {
			errs = append(errs, fmt.Errorf("link instance %s to its compute node: %w", inst.UUID, err))
		}
	}
	return errors.Join(errs...)
}
