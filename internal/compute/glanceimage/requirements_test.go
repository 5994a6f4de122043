package glanceimage

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

func TestRequirements(t *testing.T) {
	t.Parallel()
	type props map[string]string
	nested, privileged := flavor.Limits{Nested: true}, flavor.Limits{Privileged: true}
	for _, c := range []struct {
		name             string
		glance, metadata props
		limits           flavor.Limits
		cgroups          hostinfo.Layout
		class, want      string
	}{
		{"none", nil, nil, flavor.Limits{}, hostinfo.CgroupV2, "", ""},
		{"nesting", props{RequiresNesting: "true"}, nil, flavor.Limits{}, "", "ImageUnacceptable", "requires nesting (requirements.nesting), which flavor small does not allow (lxd:nested_allowed)"},
		{"of its metadata", nil, props{RequiresNesting: "1"}, flavor.Limits{}, "", "ImageUnacceptable", "requires nesting"},
		{"allowed", props{RequiresNesting: "True"}, nil, nested, "", "", ""},
		{"not required", props{RequiresNesting: "no"}, nil, flavor.Limits{}, "", "", ""},
		{"the owner knows better", props{RequiresNesting: "false"}, props{RequiresNesting: "true"}, flavor.Limits{}, "", "", ""},
		{"and worse", props{RequiresNesting: "true"}, props{RequiresNesting: "false"}, flavor.Limits{}, "", "ImageUnacceptable", "requires nesting"},
		{"no boolean", props{RequiresNesting: "perhaps"}, nil, nested, "", "ImageUnacceptable", `requirements.nesting is "perhaps"`},
		{"privileged", props{requiresPrivileged: "false"}, nil, privileged, "", "ImageUnacceptable", "cannot be a privileged container"},
		{"unprivileged", props{requiresPrivileged: "false"}, nil, flavor.Limits{}, "", "", ""},
		{"indifferent", props{requiresPrivileged: "true"}, nil, flavor.Limits{}, "", "", ""},
		{"no boolean either", nil, props{requiresPrivileged: "x"}, flavor.Limits{}, "", "ImageUnacceptable", `requirements.privileged is "x"`},
		{"cgroup v1", props{requiresCgroup: "v1"}, nil, flavor.Limits{}, hostinfo.CgroupV2, "ComputeResourcesUnavailable", "requires cgroup v1"},
		{"cgroup v1 on a hybrid host", props{requiresCgroup: "v1"}, nil, flavor.Limits{}, hostinfo.CgroupHybrid, "", ""},
		{"of virtual machines", props{"requirements.secureboot": "false", "requirements.cdrom_agent": "true"}, nil, flavor.Limits{}, "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := Requirements{
				ImageID: "image", Property: func(key string) string { return c.glance[key] }, Metadata: imagesync.Metadata{Properties: c.metadata},
			}
			err := r.Check(&object.Flavor{Name: "small"}, c.limits, c.cgroups)
			if c.class == "" {
				require.NoError(t, err)
				return
			}
			require.True(t, exception.Is(err, c.class), "%v", err)
			require.ErrorContains(t, err, c.want)
		})
	}
}
