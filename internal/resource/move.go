package resource

import (
	"context"
	"fmt"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// ClaimMove counts an instance that is about to come here, or to get another flavor here, beside
// what it has already (nova/compute/resource_tracker.py:_move_claim).
func (t *Tracker) ClaimMove(ctx context.Context, inst *object.Instance, f *object.Flavor, migration string) error {
	u := usageOf(inst, f)
	if err := t.fits(u); err != nil {
		return err
	}
	t.setMove(migration, &u)
	return t.flush(ctx)
}

// fits refuses what could never run here; Placement has admitted the rest.
func (t *Tracker) fits(u usage) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	memory, cpus := t.host.MemoryMB, t.cpus()
	if u.memoryMB <= memory && u.vcpus <= cpus {
		return nil
	}
	return exception.ComputeResourcesUnavailable(fmt.Sprintf(
		"flavor needs %d vCPUs and %d MiB, host %s has %d and %d", u.vcpus, u.memoryMB, t.opts.Host, cpus, memory))
}

func (t *Tracker) setMove(migration string, u *usage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u == nil {
		delete(t.migrating, migration)
	} else {
		t.migrating[migration] = *u
	}
	if t.since != nil {
		t.since.moves[migration] = u
	}
}

// DropMove ends what a migration takes here; whose instance is now is told by Arrived and Forget.
func (t *Tracker) DropMove(ctx context.Context, migration string) {
	t.setMove(migration, nil)
	t.flushLater(ctx)
}

// Left counts an instance that went to another host as what it leaves behind: its old flavor
// until the move is confirmed.
func (t *Tracker) Left(ctx context.Context, inst *object.Instance, old *object.Flavor, migration string) {
	u := usageOf(inst, old)
	t.setInstance(inst.UUID, nil)
	t.setMove(migration, &u)
	t.flushLater(ctx)
}

// Arrived counts an instance with the flavor that it has now; old, if not nil, is what the
// migration keeps for it on this host.
func (t *Tracker) Arrived(ctx context.Context, inst *object.Instance, migration string, old *object.Flavor) {
	u := usageOf(inst, inst.Flavor)
	t.setInstance(inst.UUID, &u)
	var kept *usage
	if old != nil {
		k := usageOf(inst, old)
		kept = &k
	}
	t.setMove(migration, kept)
	t.flushLater(ctx)
}

func (t *Tracker) setInstance(uuid string, u *usage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u == nil {
		delete(t.instances, uuid)
	} else {
		t.instances[uuid] = *u
	}
	if t.since != nil {
		t.since.instances[uuid] = u
	}
}

// flushLater stores the node; what cannot be stored is the next audit's.
func (t *Tracker) flushLater(ctx context.Context) {
	if err := t.flush(ctx); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("compute node not saved; the next audit does it")
	}
}

// Destination returns the changes that name this host as a migration's destination. dest_host
// is an address, as the driver of the source is given one.
func (t *Tracker) Destination() map[string]any {
	t.mu.Lock()
	defer t.mu.Unlock()
	return map[string]any{
		"dest_compute": t.opts.Host, "dest_node": t.nodeName, "dest_compute_id": t.computeID, "dest_host": t.opts.HostIP,
	}
}

// movesUsage counts what migrations take here besides the instances: on the destination the new
// flavor until the instance is there, on the source the old one until the move is confirmed
// (nova/compute/resource_tracker.py:_update_usage_from_migration).
func (t *Tracker) movesUsage(ctx context.Context, migrations []*object.Migration, instances []*object.Instance) map[string]usage {
	here := map[string]*object.Instance{}
	for _, inst := range instances {
		here[inst.UUID] = inst
	}
	out := map[string]usage{}
	for _, m := range migrations {
		inst, isHere := here[m.InstanceUUID], true
		if inst == nil {
			var err error
			isHere = false
			inst, err = t.deps.Conductor.InstanceByUUID(ctx, m.InstanceUUID, t.attributes("flavor")...)
			if err != nil { // the instance is deleted, or the next audit finds it
				reqctx.Log(ctx).WithField("instance", m.InstanceUUID).WithError(err).Debug("instance of a migration not counted")
				continue
			}
		}
		if f := t.takes(m, inst, isHere); f != nil {
			out[m.UUID] = usageOf(inst, f)
		}
	}
	return out
}

// takes is the flavor that a migration holds on this host beside what the instance itself is counted with;
// nil: nothing. A migration in error of an instance that does nothing any more holds nothing.
func (t *Tracker) takes(m *object.Migration, inst *object.Instance, isHere bool) *object.Flavor {
	from, to := m.SourceCompute == t.opts.Host, m.DestCompute == t.opts.Host
	switch {
	case m.MigrationType == "evacuation":
		if to && !isHere && evacuating(inst) {
			return inst.Flavor
		}
		return nil
	case !resizing(inst):
		return nil
	case from && to:
		if inst.VMState == object.VMStateResized {
			return inst.OldFlavor
		}
		return inst.NewFlavor
	case from && !isHere:
		return orElse(inst.OldFlavor, inst.Flavor)
	case to && !isHere:
		return orElse(inst.NewFlavor, inst.Flavor)
	}
	return nil
}

// evacuating tells that an instance is being rebuilt.
func evacuating(inst *object.Instance) bool {
	switch inst.TaskState {
	case object.TaskStateRebuilding, object.TaskStateRebuildBlockDeviceMapping, object.TaskStateRebuildSpawning:
		return true
	}
	return false
}

func orElse(f, otherwise *object.Flavor) *object.Flavor {
	if f != nil {
		return f
	}
	return otherwise
}
