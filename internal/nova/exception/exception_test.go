package exception

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/rpc"
)

func TestConstructors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err     *Error
		class   string
		code    int
		message string
		kwargs  map[string]any
	}{
		{InstanceNotFound("u"), "InstanceNotFound", 404, "Instance u could not be found.", kw{"instance_id": "u"}},
		{InstanceInvalidState("u", "vm_state", "paused", "stop"), "InstanceInvalidState", 400, "Instance u in vm_state paused. Cannot stop while the instance is in this state.", kw{"instance_uuid": "u", "attr": "vm_state", "state": "paused", "method": "stop"}},
		{InstanceNotRunning("u"), "InstanceNotRunning", 400, "Instance u is not running.", kw{"instance_id": "u"}},
		{InstanceNotReady("u"), "InstanceNotReady", 400, "Instance u is not ready", kw{"instance_id": "u"}},
		{InstanceExists("n"), "InstanceExists", 500, "Instance n already exists.", kw{"name": "n"}},
		{InstanceNotRescuable("u", "r"), "InstanceNotRescuable", 400, "Instance u cannot be rescued: r", kw{"instance_id": "u", "reason": "r"}},
		{InstancePowerOffFailure("r"), "InstancePowerOffFailure", 400, "Failed to power off instance: r", kw{"reason": "r"}},
		{New("InstanceRebootFailure", kw{"reason": "r"}), "InstanceRebootFailure", 400, "Failed to reboot instance: r", kw{"reason": "r"}},
		{New("InstanceTerminationFailure", kw{"reason": "r"}), "InstanceTerminationFailure", 400, "Failed to terminate instance: r", kw{"reason": "r"}},
		{BuildAbort("u", "r"), "BuildAbortException", 500, "Build of instance u aborted: r", kw{"instance_uuid": "u", "reason": "r"}},
		{New("RescheduledException", kw{"instance_uuid": "u", "reason": "r"}), "RescheduledException", 500, "Build of instance u was re-scheduled: r", kw{"instance_uuid": "u", "reason": "r"}},
		{New("GroupAffinityViolation", kw{"policy": "Affinity"}), "GroupAffinityViolation", 500, "Affinity instance group policy was violated", kw{"policy": "Affinity"}},
		{ComputeResourcesUnavailable("r"), "ComputeResourcesUnavailable", 400, "Insufficient compute resources: r.", kw{"reason": "r"}},
		{New("ComputeHostNotFound", kw{"host": "h"}), "ComputeHostNotFound", 404, "Compute host h could not be found.", kw{"host": "h"}},
		{New("HypervisorUnavailable", nil), "HypervisorUnavailable", 500, "Connection to the hypervisor is broken on host", nil},
		{ImageNotFound("i"), "ImageNotFound", 404, "Image i could not be found.", kw{"image_id": "i"}},
		{ImageNotAuthorized("i"), "ImageNotAuthorized", 500, "Not authorized for image i.", kw{"image_id": "i"}},
		{ImageNotActive("i"), "ImageNotActive", 500, "Image i is not active.", kw{"image_id": "i"}},
		{ImageUnacceptable("i", "r"), "ImageUnacceptable", 400, "Image i is unacceptable: r", kw{"image_id": "i", "reason": "r"}},
		{New("GlanceConnectionFailed", kw{"server": "s", "reason": "r"}), "GlanceConnectionFailed", 500, "Connection to glance host s failed: r", kw{"server": "s", "reason": "r"}},
		{FlavorDiskTooSmall(), "FlavorDiskTooSmall", 500, "The created instance's disk would be too small.", nil},
		{FlavorMemoryTooSmall(), "FlavorMemoryTooSmall", 500, "Flavor's memory is too small for requested image.", nil},
		{InvalidDiskInfo("r"), "InvalidDiskInfo", 400, "Disk info file is invalid: r", kw{"reason": "r"}},
		{New("DiskNotFound", kw{"location": "l"}), "DiskNotFound", 404, "No disk at l", kw{"location": "l"}},
		{ImageQuotaExceeded("i"), "ImageQuotaExceeded", 500, "Quota exceeded or out of space for image i in the image service.", kw{"image_id": "i"}},
		{New("PortBindingFailed", kw{"port_id": "p"}), "PortBindingFailed", 400, "Binding failed for port p, please check neutron logs for more information.", kw{"port_id": "p"}},
		{PortNotFound("p"), "PortNotFound", 404, "Port id p could not be found.", kw{"port_id": "p"}},
		{New("PortInUse", kw{"port_id": "p"}), "PortInUse", 400, "Port p is still in use.", kw{"port_id": "p"}},
		{New("PortNotUsable", kw{"port_id": "p", "instance": "u"}), "PortNotUsable", 400, "Port p not usable for instance u.", kw{"port_id": "p", "instance": "u"}},
		{New("PortUpdateFailed", kw{"port_id": "p", "reason": "r"}), "PortUpdateFailed", 400, "Port update failed for port p: r", kw{"port_id": "p", "reason": "r"}},
		{New("PortLimitExceeded", nil), "PortLimitExceeded", 413, "Maximum number of ports exceeded", nil},
		{New("NetworkNotFound", kw{"network_id": "n"}), "NetworkNotFound", 404, "Network n could not be found.", kw{"network_id": "n"}},
		{New("NetworkAmbiguous", nil), "NetworkAmbiguous", 400, "More than one possible network found. Specify network ID(s) to select which one(s) to connect to.", nil},
		{New("ExternalNetworkAttachForbidden", kw{"network_uuid": "n"}), "ExternalNetworkAttachForbidden", 403, "It is not allowed to create an interface on external network n", kw{"network_uuid": "n"}},
		{New("UnableToAutoAllocateNetwork", kw{"project_id": "p"}), "UnableToAutoAllocateNetwork", 400, "Unable to automatically allocate a network for project p", kw{"project_id": "p"}},
		{New("NetworksWithQoSPolicyNotSupported", kw{"instance_uuid": "u", "network_id": "n"}), "NetworksWithQoSPolicyNotSupported", 400, "Using networks with QoS policy is not supported for instance u. (Network ID is n)", kw{"instance_uuid": "u", "network_id": "n"}},
		{New("FixedIpAlreadyInUse", kw{"address": "a", "instance_uuid": "u"}), "FixedIpAlreadyInUse", 500, "Fixed IP address a is already in use on instance u.", kw{"address": "a", "instance_uuid": "u"}},
		{New("NoMoreFixedIps", kw{"net": "n"}), "NoMoreFixedIps", 500, "No fixed IP addresses available for network: n", kw{"net": "n"}},
		{New("SecurityGroupCannotBeApplied", nil), "SecurityGroupCannotBeApplied", 400, "Network requires port_security_enabled and subnet associated in order to apply security groups.", nil},
		{VirtualInterfaceCreate(), "VirtualInterfaceCreateException", 500, "Virtual Interface creation failed", nil},
		{AttachInterfaceNotSupported("u"), "AttachInterfaceNotSupported", 400, "Attaching interfaces is not supported for instance u.", kw{"instance_uuid": "u"}},
		{InterfaceAttachFailed("u"), "InterfaceAttachFailed", 500, "Failed to attach network adapter device to u", kw{"instance_uuid": "u"}},
		{InterfaceDetachFailed("u"), "InterfaceDetachFailed", 400, "Failed to detach network adapter device from u", kw{"instance_uuid": "u"}},
		{New("NetworkInterfaceTaggedAttachNotSupported", nil), "NetworkInterfaceTaggedAttachNotSupported", 400, "Tagged network interface attachment is not supported for this server instance.", nil},
		{New("Unauthorized", nil), "Unauthorized", 401, "Not authorized.", nil},
		{New("Forbidden", nil), "Forbidden", 403, "Forbidden", nil},
		{New("NeutronAdminCredentialConfigurationInvalid", nil), "NeutronAdminCredentialConfigurationInvalid", 400, "Networking client is experiencing an unauthorized exception.", nil},
		{New("VolumeNotFound", kw{"volume_id": "v"}), "VolumeNotFound", 404, "Volume v could not be found.", kw{"volume_id": "v"}},
		{New("VolumeBDMNotFound", kw{"volume_id": "v"}), "VolumeBDMNotFound", 404, "No volume Block Device Mapping with id v.", kw{"volume_id": "v"}},
		{New("InvalidVolume", kw{"reason": "r"}), "InvalidVolume", 400, "Invalid volume: r", kw{"reason": "r"}},
		{New("InvalidBDM", nil), "InvalidBDM", 400, "Block Device Mapping is Invalid.", nil},
		{New("InvalidDevicePath", kw{"path": "/x"}), "InvalidDevicePath", 400, "The supplied device path (/x) is invalid.", kw{"path": "/x"}},
		{New("DevicePathInUse", kw{"path": "/x"}), "DevicePathInUse", 409, "The supplied device path (/x) is in use.", kw{"path": "/x"}},
		{New("TooManyDiskDevices", kw{"maximum": 8}), "TooManyDiskDevices", 403, "The maximum allowed number of disk devices (8) to attach to a single instance has been exceeded.", kw{"maximum": 8}},
		{New("VolumeTaggedAttachNotSupported", nil), "VolumeTaggedAttachNotSupported", 400, "Tagged volume attachment is not supported for this server instance.", nil},
		{New("MultiattachNotSupportedByVirtDriver", kw{"volume_id": "v"}), "MultiattachNotSupportedByVirtDriver", 400, "Volume v has 'multiattach' set, which is not supported for this instance.", kw{"volume_id": "v"}},
		{New("ExtendVolumeNotSupported", nil), "ExtendVolumeNotSupported", 400, "Volume size extension is not supported by the hypervisor.", nil},
		{New("DeviceDetachFailed", kw{"device": "d", "reason": "r"}), "DeviceDetachFailed", 500, "Device detach failed for d: r", kw{"device": "d", "reason": "r"}},
		{ConsoleNotAvailable(), "ConsoleNotAvailable", 404, "Guest does not have a console available.", nil},
		{ConsoleTypeInvalid("k"), "ConsoleTypeInvalid", 400, "Invalid console type k", kw{"console_type": "k"}},
		{ConsoleTypeUnavailable("k"), "ConsoleTypeUnavailable", 400, "Unavailable console type k.", kw{"console_type": "k"}},
		{SocketPortRangeExhausted("h"), "SocketPortRangeExhaustedException", 500, "Not able to acquire a free port for h", kw{"host": "h"}},
		{New("ImageSerialPortNumberInvalid", kw{"num_ports": "x"}), "ImageSerialPortNumberInvalid", 400, "Number of serial ports specified in flavor is invalid: expected an integer, got 'x'", kw{"num_ports": "x"}},
		{MigrationPreCheck("r"), "MigrationPreCheckError", 500, "Migration pre-check error: r", kw{"reason": "r"}},
		{New("MigrationError", kw{"reason": "r"}), "MigrationError", 500, "Migration error: r", kw{"reason": "r"}},
		{ResizeError("r"), "ResizeError", 500, "Resize error: r", kw{"reason": "r"}},
		{UnableToMigrateToSelf("u", "h"), "UnableToMigrateToSelf", 400, "Unable to migrate instance (u) to current host (h).", kw{"instance_id": "u", "host": "h"}},
		{New("InvalidSharedStorage", kw{"path": "/x", "reason": "r"}), "InvalidSharedStorage", 500, "/x is not on shared storage: r", kw{"path": "/x", "reason": "r"}},
		{New("PreserveEphemeralNotSupported", nil), "PreserveEphemeralNotSupported", 400, "The current driver does not support preserving ephemeral partitions.", nil},
		{InstancePasswordSetFailed("u", "r"), "InstancePasswordSetFailed", 500, "Failed to set admin password on u because r", kw{"instance": "u", "reason": "r"}},
		{SetAdminPasswdNotSupported(), "SetAdminPasswdNotSupported", 400, "Set admin password is not supported", nil},
		{New("InstanceQuiesceNotSupported", kw{"instance_id": "u"}), "InstanceQuiesceNotSupported", 400, "Quiescing is not supported in instance u", kw{"instance_id": "u"}},
		{New("TriggerCrashDumpNotSupported", nil), "TriggerCrashDumpNotSupported", 400, "Triggering crash dump is not supported", nil},
		{New("InvalidInput", kw{"reason": "r"}), "InvalidInput", 400, "Invalid input received: r", kw{"reason": "r"}},
		{New("NoSuchClass", nil), "NoSuchClass", 500, "An unknown exception occurred.", nil},
		{New("InstanceNotFound", nil), "InstanceNotFound", 404, "Instance %(instance_id)s could not be found.", nil},
		{WithCause("PortInUse", "port p: in use", kw{"port_id": "p"}, nil), "PortInUse", 400, "port p: in use", kw{"port_id": "p"}},
	} {
		if c.err.Class != c.class || c.err.Code != c.code || c.err.Message != c.message || c.err.Module != ModuleNova {
			t.Errorf("got  %s %s %d %s\nwant %s %d %s", c.err.Module, c.err.Class, c.err.Code, c.err.Message, c.class, c.code, c.message)
		}
		if diff := cmp.Diff(c.kwargs, c.err.Kwargs); diff != "" {
			t.Errorf("%s: kwargs (-want +got):\n%s", c.class, diff)
		}
		if c.err.Error() != c.message {
			t.Errorf("%s: Error() is %q", c.class, c.err.Error())
		}
	}
}

func TestFailure(t *testing.T) {
	t.Parallel()
	got := InstanceNotFound("u").Because(errors.New("secret path")).RPCFailure()
	want := &rpc.Failure{
		Class: "InstanceNotFound", Module: "nova.exception", Message: "Instance u could not be found.",
		Args: []any{"Instance u could not be found."}, Kwargs: map[string]any{"instance_id": "u", "code": 404},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for text, args := range map[string][]any{"": {}, "no checkpoint": {"no checkpoint"}} {
		want := &rpc.Failure{Class: "NotImplementedError", Module: "builtins", Message: text, Args: args, Kwargs: map[string]any{}}
		if diff := cmp.Diff(want, NotImplemented(text).RPCFailure()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// Our failures have the form of the captured ones of the same classes.
func TestCapturedFailures(t *testing.T) {
	t.Parallel()
	ours := map[string]*Error{
		"InstanceGroupNotFound": New("InstanceGroupNotFound", kw{"group_uuid": ""}),
		"NotImplementedError":   NotImplemented(""),
		"NoValidHost":           New("NoValidHost", kw{"reason": ""}),
	}
	seen := map[string]bool{}
	for _, m := range capture.Load(t, "zed") {
		if m.Failure == nil {
			continue
		}
		var want struct {
			Class, Module, Message string
			Args                   []any
			Kwargs                 map[string]any
		}
		if err := json.Unmarshal([]byte(*m.Failure), &want); err != nil {
			t.Fatal(err)
		}
		e, ok := ours[want.Class]
		if !ok {
			t.Errorf("%s line %d: %s is not covered", m.File, m.Line, want.Class)
			continue
		}
		seen[want.Class] = true
		f := e.RPCFailure()
		if code, ok := want.Kwargs["code"].(float64); ok {
			want.Kwargs["code"] = int(code)
		}
		got := want
		got.Class, got.Module, got.Message, got.Args, got.Kwargs = f.Class, f.Module, f.Message, f.Args, f.Kwargs
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s line %d (-want +got):\n%s", m.File, m.Line, diff)
		}
	}
	if len(seen) != len(ours) {
		t.Errorf("seen only %v", seen)
	}
}

func TestIs(t *testing.T) {
	t.Parallel()
	remote := &rpc.Failure{Class: "UnexpectedDeletingTaskStateError", Module: "nova.exception"}
	for name, c := range map[string]struct {
		err   error
		class string
		want  bool
	}{
		"own":               {InstanceNotFound("u"), "InstanceNotFound", true},
		"wrapped":           {fmt.Errorf("stop: %w", InstanceNotFound("u")), "InstanceNotFound", true},
		"parent":            {InstanceNotFound("u"), "NotFound", true},
		"root":              {InstanceNotFound("u"), "NovaException", true},
		"child is not":      {New("NotFound", nil), "InstanceNotFound", false},
		"other":             {InstanceNotFound("u"), "ImageNotFound", false},
		"remote":            {fmt.Errorf("call: %w", remote), "UnexpectedDeletingTaskStateError", true},
		"remote's parent":   {remote, "UnexpectedTaskStateError", true},
		"remote's ancestor": {remote, "InstanceUpdateConflict", true},
		"unknown remote":    {&rpc.Failure{Class: "DBError", Module: "oslo_db.exception"}, "DBError", true},
		"joined":            {errors.Join(errors.New("x"), ImageNotFound("i")), "ImageNotFound", true},
		"cause is hidden":   {BuildAbort("u", "r").Because(ImageNotFound("i")), "ImageNotFound", false},
		"plain":             {errors.New("x"), "NotFound", false},
		"none":              {nil, "NotFound", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := Is(c.err, c.class); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
	cause := errors.New("cause")
	if !errors.Is(BuildAbort("u", "r").Because(cause), cause) {
		t.Error("the cause is not in the chain")
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err     error
		code    int
		message string
	}{
		"own":     {fmt.Errorf("x: %w", ImageNotFound("i")), 404, "Image i could not be found."},
		"remote":  {fmt.Errorf("x: %w", &rpc.Failure{Class: "PortInUse", Message: "Port p", Kwargs: map[string]any{"code": 409.0}}), 409, "Port p"},
		"no code": {&rpc.Failure{Class: "PortInUse"}, 400, "PortInUse"},
		"foreign": {&rpc.Failure{Class: "KeyError", Message: "k"}, 500, "k"},
		"plain":   {errors.New("disk full"), 500, "disk full"},
		"long":    {errors.New(strings.Repeat("ü", 300)), 500, strings.Repeat("ü", 255)},
	} {
		code, message := Describe(c.err)
		if code != c.code || message != c.message {
			t.Errorf("%s: got %d %s", name, code, message)
		}
	}
}

// Every parent is in the catalogue, and every template can be filled.
func TestCatalog(t *testing.T) {
	t.Parallel()
	for name, c := range catalog {
		if _, ok := catalog[c.parent]; !ok && c.parent != "" {
			t.Errorf("%s: parent %s is missing", name, c.parent)
		}
		if c.code < 400 || c.code > 599 {
			t.Errorf("%s: code %d", name, c.code)
		}
		filled := kw{}
		for _, part := range strings.Split(c.format, "%(")[1:] {
			key, _, _ := strings.Cut(part, ")")
			filled[key] = "x"
		}
		if got := New(name, filled).Message; strings.Contains(got, "%(") || got == "" {
			t.Errorf("%s: %q", name, got)
		}
	}
}
