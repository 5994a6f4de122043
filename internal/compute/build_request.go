package compute

import (
	"encoding/json"
	"errors"
	"slices"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/rpc"
)

// buildRequest is the arguments of build_and_run_instance (compute/rpcapi.py).
type buildRequest struct {
	Instance          *object.Instance
	Image             object.Image
	RequestSpec       json.RawMessage // handed back to the conductor on a reschedule
	FilterProperties  map[string]json.RawMessage
	AdminPassword     *string
	InjectedFiles     json.RawMessage
	RequestedNetworks *object.NetworkRequestList
	SecurityGroups    []string
	BDMs              []*object.BlockDeviceMapping
	HostList          []json.RawMessage // nil: the scheduler gave none
	AccelUUIDs        []string

	args rpc.Args // as received: the journal keeps it, a reschedule sends parts of it back

	refused    error // why the build fails before it begins; nil: it may begin
	resumed    bool  // an earlier process began it
	handedBack bool  // an earlier process was about to give it back to the conductor
}

// decodeBuildRequest reads the arguments. When it fails the request's instance is set if
// that much was readable, so that the instance can be told of the failure.
func decodeBuildRequest(args rpc.Args) (*buildRequest, error) {
	r := &buildRequest{Instance: &object.Instance{}, args: args}
	var bdms object.BlockDeviceMappingList
	for _, a := range []struct {
		name     string
		into     any
		optional bool
	}{
		{"instance", r.Instance, false},
		{"image", &r.Image, false},
		{"request_spec", &r.RequestSpec, false},
		{"filter_properties", &r.FilterProperties, false},
		{"admin_password", &r.AdminPassword, true},
		{"injected_files", &r.InjectedFiles, true},
		{"requested_networks", &r.RequestedNetworks, true},
		{"security_groups", &r.SecurityGroups, true},
		{"block_device_mapping", &bdms, true},
		{"host_list", &r.HostList, true},
		{"accel_uuids", &r.AccelUUIDs, true},
	} {
		if _, ok := args[a.name]; !ok && a.optional {
			continue
		}
		if err := args.Decode(a.name, a.into); err != nil {
			return r, err
		}
	}
	if err := checkUUID(r.Instance); err != nil {
		return r, err
	}
	if slices.Contains(bdms.Objects, nil) || r.RequestedNetworks != nil && slices.Contains(r.RequestedNetworks.Objects, nil) {
		return r, errors.New("decode arguments block_device_mapping and requested_networks: null inside")
	}
	r.BDMs = bdms.Objects
	return r, nil
}

// ownPorts are the ports that the user brought; they outlive the instance.
func (r *buildRequest) ownPorts() []string {
	var own []string
	if r.RequestedNetworks != nil {
		for _, n := range r.RequestedNetworks.Objects {
			if n.PortID != "" {
				own = append(own, n.PortID)
			}
		}
	}
	return own
}

// retry returns the scheduler's retry information; false: the user forced the
// host, and a failure is final.
func (r *buildRequest) retry() (map[string]json.RawMessage, bool) {
	raw, ok := r.FilterProperties["retry"]
	if !ok || string(raw) == "null" {
		return nil, false
	}
	var retry map[string]json.RawMessage
	return retry, json.Unmarshal(raw, &retry) == nil && len(retry) > 0
}

// mayReschedule tells whether another host can take the build. With an empty list
// of alternates the conductor could only fail it, and would hide the cause.
func (r *buildRequest) mayReschedule() bool {
	_, ok := r.retry()
	return ok && (r.HostList == nil || len(r.HostList) > 0)
}
