package lxc

import (
	"fmt"

	"github.com/compute-agent/compute-agent/driver"
)

// libVersion is liblxc's version.
type libVersion struct{ major, minor, micro int }

func parseVersion(s string) (libVersion, error) {
	var v libVersion
	if n, _ := fmt.Sscanf(s, "%d.%d.%d", &v.major, &v.minor, &v.micro); n < 2 {
		return v, fmt.Errorf("liblxc version %q is not understood", s)
	}
	return v, nil
}

// number is the form of ComputeNode.hypervisor_version (nova/virt: major*1e6 + minor*1e3 + micro).
func (v libVersion) number() int { return v.major*1_000_000 + v.minor*1_000 + v.micro }

func (v libVersion) String() string { return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.micro) }

// supportedLayout refuses liblxc 7 without a unified cgroup tree: it dropped cgroup v1,
// so that guests would run without any limit and could not be paused.
func supportedLayout(v libVersion, l layout) error {
	if v.major < 5 {
		return fmt.Errorf("liblxc %s is too old, 5.0 or later is needed: %w", v, driver.ErrUnsupported)
	}
	if v.major >= 7 && l != layoutV2 {
		return fmt.Errorf("liblxc %s ignores cgroup v1, and this host is %s: no limit would hold; boot with systemd.unified_cgroup_hierarchy=1 or use liblxc 5 or 6: %w",
			v, l, driver.ErrUnsupported)
	}
	return nil
}
