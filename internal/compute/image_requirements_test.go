package compute

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
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
		{"nesting", props{requiresNesting: "true"}, nil, flavor.Limits{}, "", "ImageUnacceptable", "requires nesting (requirements.nesting), which flavor small does not allow (lxd:nested_allowed)"},
		{"of its metadata", nil, props{requiresNesting: "1"}, flavor.Limits{}, "", "ImageUnacceptable", "requires nesting"},
		{"allowed", props{requiresNesting: "True"}, nil, nested, "", "", ""},
		{"not required", props{requiresNesting: "no"}, nil, flavor.Limits{}, "", "", ""},
		{"the owner knows better", props{requiresNesting: "false"}, props{requiresNesting: "true"}, flavor.Limits{}, "", "", ""},
		{"and worse", props{requiresNesting: "true"}, props{requiresNesting: "false"}, flavor.Limits{}, "", "ImageUnacceptable", "requires nesting"},
		{"no boolean", props{requiresNesting: "perhaps"}, nil, nested, "", "ImageUnacceptable", `requirements.nesting is "perhaps"`},
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
			m := &Manager{opts: Options{Cgroups: c.cgroups}}
			property := func(key string) string { return c.glance[key] }
			err := m.checkRequirements(imageID, property, imagesync.Metadata{Properties: c.metadata}, &object.Flavor{Name: "small"}, c.limits)
			if c.class == "" {
				require.NoError(t, err)
				return
			}
			require.True(t, exception.Is(err, c.class), "%v", err)
			require.ErrorContains(t, err, c.want)
		})
	}
}

// imageWith is a unified image whose metadata.yaml has a property.
func imageWith(t testing.TB, property, value string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range []struct{ name, text string }{
		{"metadata.yaml", fmt.Sprintf("architecture: amd64\ncreation_date: 1700000000\nproperties: {%s: %s}\n", property, value)},
		{"rootfs/etc/os-release", ""},
		{"rootfs/sbin/init", ""},
	} {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.text))}))
		_, err := w.Write([]byte(f.text))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// buildNesting builds a server of an image that requires nesting, by its metadata or its property.
func buildNesting(t testing.TB, byMetadata, allowed bool) *world {
	t.Helper()
	w := newWorld(t, ownIDs(t))
	if byMetadata {
		w.glance.data = imageWith(t, requiresNesting, "true")
	}
	args := w.buildArgs(nil)
	if !byMetadata {
		var image map[string]any
		require.NoError(t, json.Unmarshal(args["image"], &image))
		properties, _ := image["properties"].(map[string]any)
		properties = maps.Clone(properties)
		properties[requiresNesting] = "true"
		image["properties"] = properties
		args["image"] = novatest.Raw(image)
	}
	if allowed {
		w.flavor(args, map[string]any{"extra_specs": map[string]any{"lxd:nested_allowed": "true"}})
	}
	w.plugEvents("completed")
	_, err := w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	return w
}

// TestImageThatRequiresNesting boots where the flavor allows it. Elsewhere the build ends at once: no
// host could do better.
func TestImageThatRequiresNesting(t *testing.T) {
	t.Parallel()
	for _, byMetadata := range []bool{true, false} {
		t.Run(fmt.Sprint("metadata ", byMetadata), func(t *testing.T) {
			t.Parallel()
			w := buildNesting(t, byMetadata, true)
			require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
			guest, _ := w.driver.Instance(uuid)
			require.True(t, guest.Spec.Limits.Nested)

			w = buildNesting(t, byMetadata, false)
			require.Equal(t, "error/-/-", w.nova.States(uuid))
			require.Len(t, w.nova.Faults(), 1)
			require.Contains(t, w.nova.Faults()[0], "Image "+imageID+" is unacceptable: it requires nesting")
			require.Empty(t, w.nova.Casts("build_instances"), "not given to another host")
			fetched := w.images()
			require.Len(t, fetched, map[bool]int{true: 1, false: 0}[byMetadata], "one whose property says so is not fetched")
			w.nothingLeft()
		})
	}
}

// TestResizeFromNesting: a flavor that the image cannot work with is refused, and the server is as it was.
func TestResizeFromNesting(t *testing.T) {
	for _, here := range []bool{true, false} {
		w := buildNesting(t, true, true)
		destination := w
		if !here {
			destination = newWorldBeside(t, "zed", w, ownIDs(t), func(o *Options) { o.Host = otherHost; o.VIFPluggingTimeout = 0 })
		}
		nested := map[string]any{"extra_specs": map[string]any{"lxd:nested_allowed": "true"}}
		for _, allowed := range []bool{false, true} {
			wanted := map[string]any{"id": 99, "extra_specs": map[string]any{}}
			if allowed {
				maps.Copy(wanted, nested)
			}
			destination.step("prep_resize", prepareDisks(w, destination, nested, wanted))
			if allowed {
				w.next("resize_instance")
				destination.next("finish_resize")
				require.Equal(t, "resized/-/"+destination.opts.Host, w.nova.States(uuid))
				continue
			}
			destination.drain()
			w.endOffer(uuid) // it would expire
			require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
			require.Contains(t, w.nova.Faults()[0], "Resize error: Image "+imageID+" is unacceptable: it requires nesting")
		}
	}
}
