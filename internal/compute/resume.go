package compute

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/compute-agent/compute-agent/internal/compute/journal"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// maxResumes bounds how often an operation is taken up again: one that ends the agent each
// time must not do so for ever.
const maxResumes = 3

// errInterrupted ends a build that was interrupted too often.
var errInterrupted = errors.New("the agent was stopped again and again while it built this server")

// errUnknownMethod: no resumer takes an entry of the journal up.
var errUnknownMethod = errors.New("this agent keeps no such method in its journal")

// resumeJournal takes up what an earlier process accepted and did not end. Builds and steps of
// moves begin at once, and it returns their instances; it returns the other entries, too, which
// their instances are settled with. Call it once, before messages are consumed.
func (m *Manager) resumeJournal(ctx context.Context) (resumed map[string]bool, others map[string]journal.Entry, err error) {
	if err := m.journal.Adopt(); err != nil {
		return nil, nil, err
	}
	entries, damaged, err := m.journal.Entries()
	if err != nil {
		return nil, nil, err
	}
	for uuid, err := range damaged { // one must not keep the agent from the others
		log := reqctx.Log(reqctx.WithField(ctx, "instance", uuid)).WithError(err)
		log.Error("operation in the journal is damaged; the instance is settled as any other")
		if err := m.journal.Drop(uuid); err != nil {
			log.WithField("drop_error", err).Error("operation not removed from the journal")
		}
	}
	resumed, others = map[string]bool{}, map[string]journal.Entry{}
	steps, detached := m.moveSteps(), m.detachedMethods()
	for uuid, entry := range entries {
		if _, ok := detached[entry.Method]; ok {
			others[uuid] = entry
			continue
		}
		ctx := entry.In(ctx, uuid)
		log := reqctx.Log(ctx).WithField("method", entry.Method).WithField("accepted", entry.Accepted)
		entry.Resumed++
		err := errUnknownMethod
		if step, ok := steps[entry.Method]; ok {
			err = m.resumeMove(ctx, step, entry)
		} else if entry.Method == journal.BuildMethod {
			err = m.resumeBuild(ctx, entry)
		}
		if err != nil {
			log.WithError(err).Error("operation in the journal is not readable; the instance is settled as any other")
			if err := m.journal.Drop(uuid); err != nil {
				log.WithError(err).Error("operation not removed from the journal")
			}
			continue
		}
		log.Warning("resuming an operation that the agent's last stop interrupted")
		resumed[uuid] = true
	}
	return resumed, others, nil
}

// resumeBuild takes up a build that an earlier process accepted and did not end.
func (m *Manager) resumeBuild(ctx context.Context, entry journal.Entry) error {
	r, err := decodeBuildRequest(entry.Args)
	if err != nil {
		return err
	}
	r.resumed, r.handedBack = true, entry.HandedBack
	if entry.Resumed > maxResumes {
		r.refused = abortBecause(r.Instance.UUID, errInterrupted)
	}
	m.startBuild(ctx, r, entry)
	return nil
}

// resumable finds out how far an earlier process came with a build, and whether it is to
// be built from its beginning; if so, nothing of the earlier attempt is left. The
// caller holds the instance's lock.
func (m *Manager) resumable(ctx context.Context, r *buildRequest) (bool, error) {
	uuid := r.Instance.UUID
	admin := adminContext(ctx)
	var inst *object.Instance
	err := m.store(admin, func(ctx context.Context) (err error) {
		inst, err = m.Conductor.InstanceByUUID(ctx, uuid, "info_cache", "metadata", "system_metadata", "flavor")
		return err
	})
	log := reqctx.Log(ctx)
	switch {
	case exception.Is(err, "InstanceNotFound"):
		log.Info("the instance of an interrupted build was deleted")
		m.releaseNetwork(ctx, r)
		m.Tracker.Forget(ctx, uuid)
		return false, errors.Join(m.removeFromHost(ctx, uuid), m.releaseAllocation(ctx, uuid))
	case err != nil:
		return false, fmt.Errorf("look up the instance of an interrupted build: %w", err)
	case inst.Host != "" && inst.Host != m.opts.Host:
		log.WithField("host", inst.Host).Info("the instance of an interrupted build is on another host")
		return false, m.removeFromHost(ctx, uuid)
	case inst.TaskState == object.TaskStateDeleting:
		log.Info("completing the deletion of an instance whose build was interrupted")
		return false, m.complete(ctx, inst, m.deletion(r.ownPorts()))
	case inst.VMState != object.VMStateBuilding:
		return false, m.settleBuilt(ctx, inst)
	case r.handedBack && inst.Host == "":
		return false, m.failHandedBack(ctx, inst)
	}
	if err := m.removeFromHost(ctx, uuid); err != nil {
		return false, fmt.Errorf("remove the interrupted build from the host: %w", err)
	}
	m.resetNetwork(ctx, r)
	return true, nil
}

// settleBuilt deals with a build that had ended, well or not, when the agent stopped.
func (m *Manager) settleBuilt(ctx context.Context, inst *object.Instance) error {
	if inst.Host == m.opts.Host {
		return m.settleInstance(adminContext(ctx), inst)
	}
	return errors.Join(m.removeFromHost(ctx, inst.UUID), m.releaseAllocation(ctx, inst.UUID))
}

// failHandedBack ends a build that was on its way back to the conductor. Whether it
// arrived nobody knows; to send it twice could build the server twice. If it did arrive,
// the next host finds an instance without a task, and builds it.
func (m *Manager) failHandedBack(ctx context.Context, inst *object.Instance) error {
	m.recordFault(ctx, inst, exception.BuildAbort(inst.UUID, "the agent was stopped while it handed the build to another host"))
	err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError, "task_state": nil},
		conductor.ExpectTask(object.TaskStateScheduling))
	if exception.Is(err, "UnexpectedTaskStateError") || exception.Is(err, "InstanceNotFound") {
		err = nil // it is another's now
	}
	return errors.Join(err, m.removeFromHost(ctx, inst.UUID))
}

// failLostBuilds puts instances into ERROR that the scheduler sent here and that never
// arrived: they hold resources of this host, are being built, and are on no host
// (nova/compute/manager.py:_error_out_instances_whose_build_was_interrupted). The scheduler books a host before the
// conductor sends it the build, so only what is not there after some time counts as lost. One whose
// message is still on its way then is built all the same when it arrives.
func (m *Manager) failLostBuilds(ctx context.Context, known map[string]bool) error {
	missing, err := m.missingBuilds(ctx, known)
	if err != nil || len(missing) == 0 {
		return err
	}
	err = m.await(ctx, func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(m.lostBuildWait):
			return nil
		}
	})
	if errors.Is(err, errLeaving) {
		return nil // the next start looks
	}
	if err != nil {
		return err
	}
	still, err := m.missingBuilds(ctx, known)
	if err != nil {
		return err
	}
	for uuid, inst := range still {
		if missing[uuid] == nil {
			continue
		}
		ctx := reqctx.WithField(ctx, "instance", uuid)
		err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError, "task_state": nil},
			conductor.ExpectTask(object.TaskStateScheduling))
		if err != nil {
			reqctx.Log(ctx).WithError(err).Info("instance whose build never arrived left as it is")
			continue
		}
		reqctx.Log(ctx).Warning("put an instance into error whose build never arrived here")
	}
	return nil
}

// missingBuilds are the instances, by UUID, that were booked on this host, are to be built, and that nobody works on.
func (m *Manager) missingBuilds(ctx context.Context, known map[string]bool) (map[string]*object.Instance, error) {
	held, _, err := m.Placement.ProviderAllocations(ctx, m.Tracker.ProviderUUID())
	if err != nil {
		return nil, err
	}
	var booked []string
	for uuid := range held {
		if !known[uuid] && !m.journal.Building(uuid) {
			booked = append(booked, uuid)
		}
	}
	if len(booked) == 0 {
		return nil, nil
	}
	instances, err := m.Conductor.InstancesByFilters(ctx, map[string]any{"vm_state": object.VMStateBuilding, "uuid": booked})
	if err != nil {
		return nil, err
	}
	missing := make(map[string]*object.Instance, len(instances))
	for _, inst := range instances {
		if inst.Host == "" && !m.journal.Building(inst.UUID) {
			missing[inst.UUID] = inst
		}
	}
	return missing, nil
}
