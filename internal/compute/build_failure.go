package compute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// abortClasses end a build for good: another host would fail it in the same way
// (nova/compute/manager.py:_build_and_run_instance).
var abortClasses = []string{
	"BuildAbortException",
	"NoMoreFixedIps", "ExternalNetworkAttachForbidden", "VirtualInterfaceCreateException",
	"VirtualInterfaceMacAddressException", "FixedIpInvalidOnHost", "UnableToAutoAllocateNetwork",
	"NetworksWithQoSPolicyNotSupported",
	"FlavorDiskTooSmall", "FlavorMemoryTooSmall", "ImageNotActive", "ImageUnacceptable", "InvalidDiskInfo",
	"InvalidDiskFormat", "SignatureVerificationError", "CertificateValidationFailed",
	"VolumeEncryptionNotSupported", "InvalidInput", "RequestedVRamTooHigh",
}

// isGone tells that the instance was deleted, or is being, while it was built.
func isGone(err error) bool {
	return errors.Is(err, errDeleted) || exception.Is(err, "InstanceNotFound") || exception.Is(err, "UnexpectedDeletingTaskStateError")
}

// failBuild tells the control plane of a failed build: reschedules it if another host
// may take it, else puts the instance into ERROR with the cause in its fault. failure is
// what the action event shall say: like nova-compute, nothing for a build that goes on
// elsewhere or whose instance is gone. err: the outcome could not be stored.
func (m *Manager) failBuild(ctx context.Context, r *buildRequest, cause error) (failure, err error) {
	inst := r.Instance
	cause = novaError(inst, cause)
	log := reqctx.Log(ctx).WithError(cause)
	m.Tracker.Forget(ctx, inst.UUID)
	if isGone(cause) {
		log.Info("build ended because the instance is being deleted")
		m.releaseNetwork(ctx, r)
		return nil, m.releaseAllocation(ctx, inst.UUID)
	}
	if exception.Is(cause, "UnexpectedTaskStateError") {
		log.Warning("build not begun because another operation has the instance")
		return nil, nil
	}
	m.Tracker.BuildFailed()
	m.Notify.Instance(ctx, notify.Event{Action: "create", Phase: "error", Instance: inst, Err: cause, BDMs: r.BDMs})
	m.resetNetwork(ctx, r)
	if !isAbort(cause) && r.mayReschedule() {
		err := m.reschedule(ctx, r, cause)
		if err == nil {
			log.Warning("build rescheduled to another host")
			return nil, nil
		}
		log.WithField("reschedule_error", err).Error("build not rescheduled")
	}
	m.recordFault(ctx, inst, cause)
	changes := m.Tracker.NoOwnership()
	maps.Copy(changes, map[string]any{"vm_state": object.VMStateError, "task_state": nil})
	err = m.store(ctx, func(ctx context.Context) error { return m.Conductor.SaveInstance(ctx, inst, changes) })
	if err != nil && !isGone(err) {
		return cause, fmt.Errorf("store error state: %w", err)
	}
	if err := m.releaseAllocation(ctx, inst.UUID); err != nil {
		log.WithField("allocation_error", err).Error("allocation not deleted; the next audit removes it once the instance is deleted")
	}
	return cause, nil
}

// isAbort tells that another host would fail a build in the same way.
func isAbort(failure error) bool {
	return slices.ContainsFunc(abortClasses, func(class string) bool { return exception.Is(failure, class) })
}

// storeAttempts bounds how long the end of a build waits for a conductor: each attempt
// takes an rpc_response_timeout.
const storeAttempts = 5

// store repeats a call while no conductor answers. The call must be one that may be
// made twice, for an answer may have been lost.
func (m *Manager) store(ctx context.Context, call func(ctx context.Context) error) error {
	for attempt := 1; ; attempt++ {
		err := call(ctx)
		if !errors.Is(err, rpc.ErrTimeout) || attempt == storeAttempts {
			return err
		}
		reqctx.Log(ctx).WithError(err).WithField("attempt", attempt).Warning("no conductor answers; trying again")
		select {
		case <-ctx.Done():
			return err
		case <-time.After(m.storePause):
		}
	}
}

// releaseNetwork gives back the ports of a failed build: those that it created are
// deleted, the user's own are unbound.
func (m *Manager) releaseNetwork(ctx context.Context, r *buildRequest) {
	if !requestsNetwork(r.RequestedNetworks) {
		return
	}
	if err := m.Neutron.Deallocate(ctx, r.Instance.UUID, r.ownPorts()); err != nil {
		reqctx.Log(ctx).WithError(err).Error("ports of a failed build not released")
	}
}

// resetNetwork leaves a server that lives on as it was before its ports were made: the
// next build records the user's own ports anew, which the database admits only once
// (nova/network/neutron.py:deallocate_for_instance).
func (m *Manager) resetNetwork(ctx context.Context, r *buildRequest) {
	if !requestsNetwork(r.RequestedNetworks) {
		return
	}
	m.releaseNetwork(ctx, r)
	uuid := r.Instance.UUID
	err := errors.Join(m.Conductor.DeleteVIFs(ctx, uuid), m.Conductor.SaveInfoCache(ctx, uuid, nil))
	if err != nil && !exception.Is(err, "InstanceInfoCacheNotFound") {
		reqctx.Log(ctx).WithError(err).Warning("records of a failed build's ports not removed")
	}
}

// releaseAllocation removes the instance's claim in placement, which the scheduler made.
func (m *Manager) releaseAllocation(ctx context.Context, uuid string) error {
	_, err := m.Placement.DeleteAllocation(ctx, uuid)
	return err
}

// reschedule hands the build back to the conductor for the next alternate host. The
// order matters: the conductor claims anew, so the host and the old allocation must
// be gone before it hears of it.
func (m *Manager) reschedule(ctx context.Context, r *buildRequest, failure error) error {
	retry, _ := r.retry()
	retry["exc"] = encode([]string{exception.Traceback(failure)})
	retry["exc_reason"] = encode(failure.Error())
	filters := maps.Clone(r.FilterProperties)
	filters["retry"] = encode(retry)

	if err := m.journal.HandBack(r.Instance.UUID); err != nil {
		return err
	}
	changes := m.Tracker.NoOwnership()
	maps.Copy(changes, map[string]any{"availability_zone": nil, "task_state": object.TaskStateScheduling})
	if err := m.Conductor.SaveInstance(ctx, r.Instance, changes); err != nil {
		return err
	}
	if err := m.releaseAllocation(ctx, r.Instance.UUID); err != nil {
		return err // the next host's claim could not replace it
	}
	args := map[string]any{
		"instances": []*object.Instance{r.Instance}, "filter_properties": filters, "host_lists": []any{r.HostList},
	}
	for _, name := range []string{"image", "admin_password", "injected_files", "requested_networks", "security_groups", "request_spec"} {
		value, ok := r.args[name]
		if !ok {
			value = json.RawMessage("null")
		}
		args[name] = value
	}
	ctx, cancel := context.WithTimeout(ctx, castTimeout)
	defer cancel()
	return m.Conductor.BuildInstances(ctx, args)
}

// encode is json.Marshal for values that cannot fail.
func encode(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err)) // a programmer's mistake: only plain values are passed
	}
	return b
}
