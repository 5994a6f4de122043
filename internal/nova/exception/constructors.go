package exception

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

// BuildAbort ends a build without another try on another host.
func BuildAbort(uuid, reason string) *Error {
	return New("BuildAbortException", kw{"instance_uuid": uuid, "reason": reason})
}

// Resources.

// ComputeResourcesUnavailable refuses a claim.
func ComputeResourcesUnavailable(reason string) *Error {
	return New("ComputeResourcesUnavailable", kw{"reason": reason})
}

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

// SignatureVerification says why an image's signature proves nothing. The class is cursive's, whose words these are: what Nova's
// callers see of it is the text.
func SignatureVerification(reason string) *Error {
	return &Error{
		Class: "SignatureVerificationError", Module: "cursive.exception", Code: 500, Kwargs: kw{"reason": reason},
		Message: "Signature verification for the image failed: " + reason + ".",
	}
}

// CertificateValidationFailed says why the certificate of an image's signature is not trusted.
func CertificateValidationFailed(certificateID, reason string) *Error {
	return New("CertificateValidationFailed", kw{"cert_uuid": certificateID, "reason": reason})
}

// FlavorDiskTooSmall says that the image needs a larger root disk.
func FlavorDiskTooSmall() *Error { return New("FlavorDiskTooSmall", nil) }

// FlavorMemoryTooSmall says that the image needs more memory.
func FlavorMemoryTooSmall() *Error { return New("FlavorMemoryTooSmall", nil) }

// InvalidDiskInfo says that a disk or its record cannot be used.
func InvalidDiskInfo(reason string) *Error { return New("InvalidDiskInfo", kw{"reason": reason}) }

// ImageQuotaExceeded says that Glance has no room for a snapshot.
func ImageQuotaExceeded(id string) *Error { return New("ImageQuotaExceeded", kw{"image_id": id}) }

// Network.

// PortNotFound says that neutron has no such port.
func PortNotFound(portID string) *Error { return New("PortNotFound", kw{"port_id": portID}) }

// VirtualInterfaceCreate says that a guest's interface could not be made.
func VirtualInterfaceCreate() *Error { return New("VirtualInterfaceCreateException", nil) }

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

// Moves.

// MigrationPreCheck refuses a live migration; the server keeps its state.
func MigrationPreCheck(reason string) *Error {
	return New("MigrationPreCheckError", kw{"reason": reason})
}

// ResizeError says why a resize failed.
func ResizeError(reason string) *Error { return New("ResizeError", kw{"reason": reason}) }

// UnableToMigrateToSelf refuses a move to the same host.
func UnableToMigrateToSelf(uuid, host string) *Error {
	return New("UnableToMigrateToSelf", kw{"instance_id": uuid, "host": host})
}

// Guest operations that may be refused.

// InstancePasswordSetFailed says why the password was not changed.
func InstancePasswordSetFailed(uuid, reason string) *Error {
	return New("InstancePasswordSetFailed", kw{"instance": uuid, "reason": reason})
}

// SetAdminPasswdNotSupported refuses to change the password.
func SetAdminPasswdNotSupported() *Error { return New("SetAdminPasswdNotSupported", nil) }
