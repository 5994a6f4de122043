package glanceimage

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// Properties by which images say what they need of a container (Incus doc/image_format, internal/server/instance/drivers/driver_lxc.go:
// validateStartup). The others of their kind are about virtual machines.
const (
	RequiresNesting    = "requirements.nesting"    // true: they do not work without
	requiresPrivileged = "requirements.privileged" // false: they do not work in a privileged container
	requiresCgroup     = "requirements.cgroup"     // v1: they do not work on a host with cgroup v2 alone
)

// Requirements are what an image says of the containers that can be made of it. Property reads the image's in Glance,
// which its owner can change, and is heard before its metadata.yaml.
type Requirements struct {
	ImageID  string
	Property func(key string) string
	Metadata imagesync.Metadata
}

// Check refuses an image that cannot work with a flavor, or on this host. An image gets nothing by what
// it requires: the flavor is the operator's word on what its servers may do.
func (r Requirements) Check(f *object.Flavor, limits flavor.Limits, cgroups hostinfo.Layout) error {
	value := func(key string) string { return cmp.Or(r.Property(key), r.Metadata.Properties[key]) }
	refuse := func(format string, args ...any) error {
		return exception.ImageUnacceptable(r.ImageID, fmt.Sprintf(format, args...))
	}
	nesting, err := requirement(RequiresNesting, value, false)
	if err != nil {
		return refuse("%v", err)
	}
	privileged, err := requirement(requiresPrivileged, value, true)
	if err != nil {
		return refuse("%v", err)
	}
	switch {
	case nesting && !limits.Nested:
		return refuse("it requires nesting (%s), which flavor %s does not allow (lxd:nested_allowed)", RequiresNesting, f.Name)
	case !privileged && limits.Privileged:
		return refuse("it cannot be a privileged container (%s), which flavor %s makes of it (lxd:privileged_allowed)", requiresPrivileged, f.Name)
	case value(requiresCgroup) == "v1" && cgroups == hostinfo.CgroupV2:
		return exception.ComputeResourcesUnavailable(fmt.Sprintf("image %s requires cgroup v1 (%s), this host has v2 alone", r.ImageID, requiresCgroup))
	}
	return nil
}

// requirement reads a property that is true or false, in the words that Incus knows (shared/util:IsTrue).
func requirement(key string, value func(string) string, otherwise bool) (bool, error) {
	switch strings.ToLower(value(key)) {
	case "":
		return otherwise, nil
	case "true", "1", "yes", "on":
		return true, nil
	case "false", "0", "no", "off":
		return false, nil
	}
	return false, fmt.Errorf("%s is %q, which is neither true nor false", key, value(key))
}
