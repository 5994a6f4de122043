package exception

import "fmt"

type kw = map[string]any

// NotImplemented is Python's own NotImplementedError, which the API answers with 501.
// The text may be empty.
func NotImplemented(text string) *Error {
	return &Error{Class: "NotImplementedError", Module: ModuleBuiltins, Message: text, Code: 500}
}

// Instances: states and life cycle.

// InstanceNotFound says that no such instance exists.
func InstanceNotFound(uuid string) *Error {
	return New("InstanceNotFound", kw{"instance_id": uuid})
}

// InstanceInvalidState says that a method does not fit the state; attr is "vm_state",
// "task_state" or "power state".
func InstanceInvalidState(uuid, attr, state, method string) *Error {
	return New("InstanceInvalidState", kw{"instance_uuid": uuid, "attr": attr, "state": state, "method": method})
}

// InstanceNotRunning says that the guest is not running.
func InstanceNotRunning(uuid string) *Error {
	return New("InstanceNotRunning", kw{"instance_id": uuid})
}

// InstanceNotReady says that the instance has no guest yet.
func InstanceNotReady(uuid string) *Error {
	return New("InstanceNotReady", kw{"instance_id": uuid})
}

// InstanceExists says that the guest exists already.
func InstanceExists(name string) *Error { return New("InstanceExists", kw{"name": name}) }

// InstanceNotRescuable says why an instance cannot be rescued.
func InstanceNotRescuable(uuid, reason string) *Error {
	return New("InstanceNotRescuable", kw{"instance_id": uuid, "reason": reason})
}

// InstancePowerOffFailure says why a guest does not stop.
func InstancePowerOffFailure(reason string) *Error {
	return New("InstancePowerOffFailure", kw{"reason": reason})
}

// InstanceRebootFailure says why a guest does not restart.
func InstanceRebootFailure(reason string) *Error {
	return New("InstanceRebootFailure", kw{"reason": reason})
}

// InstanceTerminationFailure says why a guest cannot be removed.
func InstanceTerminationFailure(reason string) *Error {
	return New("InstanceTerminationFailure", kw{"reason": reason})
}

// BuildAbort ends a build without another try on another host.
func BuildAbort(uuid, reason string) *Error {
	return New("BuildAbortException", kw{"instance_uuid": uuid, "reason": reason})
}

// Rescheduled ends a build here; the conductor may try the next host.
func Rescheduled(uuid, reason string) *Error {
	return New("RescheduledException", kw{"instance_uuid": uuid, "reason": reason})
}

// InstanceFaultRollback carries an error of an operation that left the instance as it
// was before; its cause is the error to show (nova/exception.py:InstanceFaultRollback).
func InstanceFaultRollback(inner error) *Error {
	e := New("InstanceFaultRollback", nil)
	e.Message = fmt.Sprintf("Instance rollback performed due to: %s", inner)
	e.cause = inner
	return e
}

// UnexpectedTaskState says that a save's expectation did not hold.
func UnexpectedTaskState(uuid string, expected, actual any) *Error {
	return New("UnexpectedTaskStateError", kw{"instance_uuid": uuid, "expected": expected, "actual": actual})
}

// GroupAffinityViolation says that a server group's policy would be broken here.
func GroupAffinityViolation(policy string) *Error {
	return New("GroupAffinityViolation", kw{"policy": policy})
}

// Resources.

// ComputeResourcesUnavailable refuses a claim.
func ComputeResourcesUnavailable(reason string) *Error {
	return New("ComputeResourcesUnavailable", kw{"reason": reason})
}

// ComputeHostNotFound says that the host has no compute node record.
func ComputeHostNotFound(host string) *Error {
	return New("ComputeHostNotFound", kw{"host": host})
}

// HypervisorUnavailable says that the driver cannot work at all.
func HypervisorUnavailable() *Error { return New("HypervisorUnavailable", nil) }

// Images and disks.

// ImageNotFound says that Glance has no such image.
func ImageNotFound(id string) *Error { return New("ImageNotFound", kw{"image_id": id}) }

// ImageNotAuthorized says that the caller may not read the image.
func ImageNotAuthorized(id string) *Error { return New("ImageNotAuthorized", kw{"image_id": id}) }

// ImageNotActive says that the image has no data yet.
func ImageNotActive(id string) *Error { return New("ImageNotActive", kw{"image_id": id}) }

// ImageUnacceptable says why a container cannot be made of the image.
func ImageUnacceptable(id, reason string) *Error {
	return New("ImageUnacceptable", kw{"image_id": id, "reason": reason})
}

// GlanceConnectionFailed says that the image service cannot be reached.
func GlanceConnectionFailed(server, reason string) *Error {
	return New("GlanceConnectionFailed", kw{"server": server, "reason": reason})
}

// FlavorDiskTooSmall says that the image needs a larger root disk.
func FlavorDiskTooSmall() *Error { return New("FlavorDiskTooSmall", nil) }

// FlavorMemoryTooSmall says that the image needs more memory.
func FlavorMemoryTooSmall() *Error { return New("FlavorMemoryTooSmall", nil) }

// InvalidDiskInfo says that a disk or its record cannot be used.
func InvalidDiskInfo(reason string) *Error { return New("InvalidDiskInfo", kw{"reason": reason}) }

// DiskNotFound says that a disk is not where it should be.
func DiskNotFound(location string) *Error { return New("DiskNotFound", kw{"location": location}) }

// ImageQuotaExceeded says that Glance has no room for a snapshot.
func ImageQuotaExceeded(id string) *Error { return New("ImageQuotaExceeded", kw{"image_id": id}) }

// Network.

// PortBindingFailed says that neutron could not bind the port to this host.
func PortBindingFailed(portID string) *Error {
	return New("PortBindingFailed", kw{"port_id": portID})
}

// PortNotFound says that neutron has no such port.
func PortNotFound(portID string) *Error { return New("PortNotFound", kw{"port_id": portID}) }

// PortInUse says that another instance holds the port.
func PortInUse(portID string) *Error { return New("PortInUse", kw{"port_id": portID}) }

// PortNotUsable says that the port belongs to another project.
func PortNotUsable(portID, uuid string) *Error {
	return New("PortNotUsable", kw{"port_id": portID, "instance": uuid})
}

// PortUpdateFailed says why neutron's port could not be changed.
func PortUpdateFailed(portID, reason string) *Error {
	return New("PortUpdateFailed", kw{"port_id": portID, "reason": reason})
}

// PortLimitExceeded says that the project's port quota is used up.
func PortLimitExceeded() *Error { return New("PortLimitExceeded", nil) }

// NetworkNotFound says that neutron has no such network.
func NetworkNotFound(id string) *Error { return New("NetworkNotFound", kw{"network_id": id}) }

// NetworkAmbiguous says that a request without networks found several.
func NetworkAmbiguous() *Error { return New("NetworkAmbiguous", nil) }

// ExternalNetworkAttachForbidden says that the caller may not use an external network.
func ExternalNetworkAttachForbidden(id string) *Error {
	return New("ExternalNetworkAttachForbidden", kw{"network_uuid": id})
}

// UnableToAutoAllocateNetwork says that no network could be made for the project.
func UnableToAutoAllocateNetwork(project string) *Error {
	return New("UnableToAutoAllocateNetwork", kw{"project_id": project})
}

// NetworksWithQoSPolicyNotSupported says that a port asks for bandwidth that nobody placed.
func NetworksWithQoSPolicyNotSupported(uuid, networkID string) *Error {
	return New("NetworksWithQoSPolicyNotSupported", kw{"instance_uuid": uuid, "network_id": networkID})
}

// FixedIPAlreadyInUse says that another port has the address.
func FixedIPAlreadyInUse(address, uuid string) *Error {
	return New("FixedIpAlreadyInUse", kw{"address": address, "instance_uuid": uuid})
}

// NoMoreFixedIPs says that the network has no free address.
func NoMoreFixedIPs(network string) *Error { return New("NoMoreFixedIps", kw{"net": network}) }

// SecurityGroupCannotBeApplied says that the network cannot have security groups.
func SecurityGroupCannotBeApplied() *Error { return New("SecurityGroupCannotBeApplied", nil) }

// VirtualInterfaceCreate says that a guest's interface could not be made.
func VirtualInterfaceCreate() *Error { return New("VirtualInterfaceCreateException", nil) }

// VirtualInterfacePlug says why an interface could not be connected on the host.
func VirtualInterfacePlug(reason string) *Error {
	e := New("VirtualInterfacePlugException", nil)
	if reason != "" {
		e.Message = reason
	}
	return e
}

// AttachInterfaceNotSupported says that the instance takes no new interface.
func AttachInterfaceNotSupported(uuid string) *Error {
	return New("AttachInterfaceNotSupported", kw{"instance_uuid": uuid})
}

// InterfaceAttachFailed says that a new interface could not be added.
func InterfaceAttachFailed(uuid string) *Error {
	return New("InterfaceAttachFailed", kw{"instance_uuid": uuid})
}

// InterfaceDetachFailed says that an interface could not be removed.
func InterfaceDetachFailed(uuid string) *Error {
	return New("InterfaceDetachFailed", kw{"instance_uuid": uuid})
}

// NetworkInterfaceTaggedAttachNotSupported refuses a device tag on a new interface.
func NetworkInterfaceTaggedAttachNotSupported() *Error {
	return New("NetworkInterfaceTaggedAttachNotSupported", nil)
}

// Unauthorized says that neutron refused the caller's token.
func Unauthorized() *Error { return New("Unauthorized", nil) }

// Forbidden says that a service's policy refuses the caller.
func Forbidden() *Error { return New("Forbidden", nil) }

// NeutronAdminCredentialConfigurationInvalid says that neutron refused our own credentials.
func NeutronAdminCredentialConfigurationInvalid() *Error {
	return New("NeutronAdminCredentialConfigurationInvalid", nil)
}

// Volumes.

// VolumeNotFound says that there is no such volume.
func VolumeNotFound(id string) *Error { return New("VolumeNotFound", kw{"volume_id": id}) }

// VolumeBDMNotFound says that the volume is not attached to the instance.
func VolumeBDMNotFound(volumeID string) *Error {
	return New("VolumeBDMNotFound", kw{"volume_id": volumeID})
}

// InvalidVolume says why a volume cannot be used.
func InvalidVolume(reason string) *Error { return New("InvalidVolume", kw{"reason": reason}) }

// InvalidBDM says that the block device mapping cannot be served.
func InvalidBDM() *Error { return New("InvalidBDM", nil) }

// InvalidDevicePath says that the wanted device name is none.
func InvalidDevicePath(path string) *Error { return New("InvalidDevicePath", kw{"path": path}) }

// DevicePathInUse says that another disk has the wanted device name.
func DevicePathInUse(path string) *Error { return New("DevicePathInUse", kw{"path": path}) }

// TooManyDiskDevices says that the instance has its maximum of disks.
func TooManyDiskDevices(maximum int) *Error {
	return New("TooManyDiskDevices", kw{"maximum": maximum})
}

// VolumeTaggedAttachNotSupported refuses a device tag on a new volume.
func VolumeTaggedAttachNotSupported() *Error { return New("VolumeTaggedAttachNotSupported", nil) }

// MultiattachNotSupportedByVirtDriver refuses a volume that several servers share.
func MultiattachNotSupportedByVirtDriver(volumeID string) *Error {
	return New("MultiattachNotSupportedByVirtDriver", kw{"volume_id": volumeID})
}

// ExtendVolumeNotSupported refuses to grow an attached volume.
func ExtendVolumeNotSupported() *Error { return New("ExtendVolumeNotSupported", nil) }

// DeviceDetachFailed says why a disk could not be removed from a guest.
func DeviceDetachFailed(device, reason string) *Error {
	return New("DeviceDetachFailed", kw{"device": device, "reason": reason})
}

// Consoles.

// ConsoleNotAvailable says that the guest has no console now.
func ConsoleNotAvailable() *Error { return New("ConsoleNotAvailable", nil) }

// ConsoleTypeInvalid says that there is no such kind of console.
func ConsoleTypeInvalid(kind string) *Error {
	return New("ConsoleTypeInvalid", kw{"console_type": kind})
}

// ConsoleTypeUnavailable says that this kind of console is off here.
func ConsoleTypeUnavailable(kind string) *Error {
	return New("ConsoleTypeUnavailable", kw{"console_type": kind})
}

// SocketPortRangeExhausted says that no console port is free.
func SocketPortRangeExhausted(host string) *Error {
	return New("SocketPortRangeExhaustedException", kw{"host": host})
}

// ImageSerialPortNumberInvalid says that the flavor's number of serial ports is none.
func ImageSerialPortNumberInvalid(value string) *Error {
	return New("ImageSerialPortNumberInvalid", kw{"num_ports": value})
}

// Moves.

// MigrationPreCheck refuses a live migration; the server keeps its state.
func MigrationPreCheck(reason string) *Error {
	return New("MigrationPreCheckError", kw{"reason": reason})
}

// MigrationError says why a move failed.
func MigrationError(reason string) *Error { return New("MigrationError", kw{"reason": reason}) }

// ResizeError says why a resize failed.
func ResizeError(reason string) *Error { return New("ResizeError", kw{"reason": reason}) }

// UnableToMigrateToSelf refuses a move to the same host.
func UnableToMigrateToSelf(uuid, host string) *Error {
	return New("UnableToMigrateToSelf", kw{"instance_id": uuid, "host": host})
}

// InvalidSharedStorage says that a move needs shared storage and has none.
func InvalidSharedStorage(path, reason string) *Error {
	return New("InvalidSharedStorage", kw{"path": path, "reason": reason})
}

// PreserveEphemeralNotSupported refuses a rebuild that keeps the ephemeral disk.
func PreserveEphemeralNotSupported() *Error { return New("PreserveEphemeralNotSupported", nil) }

// Guest operations that may be refused.

// InstancePasswordSetFailed says why the password was not changed.
func InstancePasswordSetFailed(uuid, reason string) *Error {
	return New("InstancePasswordSetFailed", kw{"instance": uuid, "reason": reason})
}

// SetAdminPasswdNotSupported refuses to change the password.
func SetAdminPasswdNotSupported() *Error { return New("SetAdminPasswdNotSupported", nil) }

// InstanceQuiesceNotSupported refuses to freeze the guest's file systems.
func InstanceQuiesceNotSupported(uuid string) *Error {
	return New("InstanceQuiesceNotSupported", kw{"instance_id": uuid})
}

// TriggerCrashDumpNotSupported refuses a crash dump.
func TriggerCrashDumpNotSupported() *Error { return New("TriggerCrashDumpNotSupported", nil) }

// InvalidInput says what is wrong with an argument.
func InvalidInput(reason string) *Error { return New("InvalidInput", kw{"reason": reason}) }

// InvalidConfiguration says that the configuration cannot be used; reason replaces the
// class's own words.
func InvalidConfiguration(reason string) *Error {
	e := New("InvalidConfiguration", nil)
	if reason != "" {
		e.Message = reason
	}
	return e
}
