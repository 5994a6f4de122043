package compute

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/compute/glanceimage"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
)

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
		w.glance.data = imageWith(t, glanceimage.RequiresNesting, "true")
	}
	args := w.buildArgs(nil)
	if !byMetadata {
		var image map[string]any
		require.NoError(t, json.Unmarshal(args["image"], &image))
		properties, _ := image["properties"].(map[string]any)
		properties = maps.Clone(properties)
		properties[glanceimage.RequiresNesting] = "true"
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
