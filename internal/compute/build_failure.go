package compute

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
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
// may take it, else puts the instance into ERROR with the cause in its fault. It
// returns what the action event shall say: like nova-compute, nothing for a
// build that goes on elsewhere or whose instance is gone.
func (m *Manager) failBuild(ctx context.Context, r *buildRequest, failure error) error {
	inst := r.Instance
	failure = novaError(inst, failure)
	log := reqctx.Log(ctx).WithError(failure)
	m.Tracker.Forget(ctx, inst.UUID)
	if isGone(failure) {
		log.Info("build ended because the instance is being deleted")
		m.releaseNetwork(ctx, r)
		return nil
	}
	if exception.Is(failure, "UnexpectedTaskStateError") {
		log.Warning("build ended because another operation took the instance over")
		return nil
	}
	m.Tracker.BuildFailed()
	m.Notify.Instance(ctx, notify.Event{Action: "create", Phase: "error", Instance: inst, Err: failure, BDMs: r.BDMs})
	m.releaseNetwork(ctx, r)
	abort := false
	if class, ok := exception.ClassOf(failure); ok {
		abort = slices.Contains(abortClasses, class)
	}
	if !abort && r.mayReschedule() {
		err := m.reschedule(ctx, r, failure)
		if err == nil {
			log.Warning("build rescheduled to another host")
			return nil
		}
		log.WithField("reschedule_error", err).Error("build not rescheduled")
	}
	m.recordFault(ctx, inst, failure)
	changes := m.Tracker.NoOwnership()
	maps.Copy(changes, map[string]any{"vm_state": object.VMStateError, "task_state": nil})
	if err := m.Conductor.SaveInstance(ctx, inst, changes); err != nil && !isGone(err) {
		log.WithField("save_error", err).Error("error state not stored")
	}
	m.releaseAllocation(ctx, inst.UUID)
	return failure
}

// releaseNetwork gives back the ports of a failed build: those that it created are
// deleted, the user's own are unbound.
func (m *Manager) releaseNetwork(ctx context.Context, r *buildRequest) {
	if !requestsNetwork(r.RequestedNetworks) {
		return
	}
	var own []string
	if r.RequestedNetworks != nil {
		for _, n := range r.RequestedNetworks.Objects {
			if n.PortID != "" {
				own = append(own, n.PortID)
			}
		}
	}
	if err := m.Neutron.Deallocate(ctx, r.Instance.UUID, own); err != nil {
		reqctx.Log(ctx).WithError(err).Error("ports of a failed build not released")
	}
}

// releaseAllocation removes the instance's claim in placement, which the scheduler made.
func (m *Manager) releaseAllocation(ctx context.Context, uuid string) {
	if _, err := m.Placement.DeleteAllocation(ctx, uuid); err != nil {
		reqctx.Log(ctx).WithError(err).Error("allocation not deleted; the next audit removes it once the instance is deleted")
	}
}

// reschedule hands the build back to the conductor for the next alternate host. The
// order matters: the conductor claims anew, so the host and the old allocation must
// be gone before it hears of it.
func (m *Manager) reschedule(ctx context.Context, r *buildRequest, failure error) error {
	retry, _ := r.retry()
	retry["exc"] = encode([]string{traceback(failure)})
	retry["exc_reason"] = encode(failure.Error())
	filters := maps.Clone(r.FilterProperties)
	filters["retry"] = encode(retry)

	changes := m.Tracker.NoOwnership()
	maps.Copy(changes, map[string]any{"availability_zone": nil, "task_state": object.TaskStateScheduling})
	if err := m.Conductor.SaveInstance(ctx, r.Instance, changes); err != nil {
		return err
	}
	m.releaseAllocation(ctx, r.Instance.UUID)
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
	return m.Conductor.BuildInstances(ctx, args)
}
