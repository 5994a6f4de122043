package compute

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// withPools gives a host storage pools, one of which is for images too.
func withPools(o *Options) { o.Pools, o.ImagePools = []string{"fast", "slow"}, []string{"slow"} }

func poolSpec(name string) map[string]any {
	return map[string]any{"extra_specs": map[string]any{"lxc:pool": name}}
}

// rootPool is the pool of an instance's root disk, by the record and by the back end.
func (w *world) rootPool() string {
	w.t.Helper()
	rec, ok, err := w.record(uuid)
	require.NoError(w.t, err)
	require.True(w.t, ok)
	w.roots.mu.Lock()
	defer w.roots.mu.Unlock()
	require.Equal(w.t, rec.Root.Pool, w.roots.roots[uuid].Pool)
	return rec.Root.Pool
}

// TestPoolOfBuild: the flavor's word on the pool counts, then the image's, if the host leaves that pool to images. What this host
// lacks or keeps from images another may have: the build goes there.
func TestPoolOfBuild(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, flavor, image string
		want                string
		fault               string // "": the server is built here
	}{
		{"nobody says", "", "", "", ""},
		{"flavor", "fast", "", "fast", ""},
		{"image", "", "slow", "slow", ""},
		{"flavor before image", "fast", "slow", "fast", ""},
		{"flavor wants the default", "default", "fast", "", ""},
		{"unknown of flavor", "gold", "", "", `host node1 has no storage pool "gold", which flavor`},
		{"unknown of image", "", "../gold", "", `host node1 has no storage pool "../gold", which the image's property lxc_pool asks for`},
		{"not for images", "", "fast", "", `which host node1 does not leave to images ([lxc] image_pools)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, withPools, func(o *Options) { o.Host = "node1" })
			args := w.buildArgs(nil)
			if c.image != "" {
				var image map[string]any
				require.NoError(t, json.Unmarshal(args["image"], &image))
				properties, _ := image["properties"].(map[string]any)
				properties = maps.Clone(properties)
				properties["lxc_pool"] = c.image
				image["properties"] = properties
				args["image"] = novatest.Raw(image)
			}
			if c.flavor != "" {
				w.flavor(args, poolSpec(c.flavor))
			}
			w.plugEvents("completed")
			_, err := w.call(user(t), "build_and_run_instance", args)
			require.NoError(t, err)
			if c.fault == "" {
				require.Equal(t, "active/-/node1", w.nova.States(uuid))
				require.Equal(t, c.want, w.rootPool())
				return
			}
			casts := w.nova.Casts("build_instances")
			require.Len(t, casts, 1, "given to another host")
			require.Contains(t, string(novatest.Raw(casts[0].Args)), strings.Trim(string(novatest.Raw(c.fault)), `"`))
			require.Empty(t, w.images(), "nothing is fetched for it")
			w.nothingLeft()
		})
	}
}

// TestPoolIsGone: while the configuration does not name the pool of a root disk, its server is not forgotten.
func TestPoolIsGone(t *testing.T) {
	t.Parallel()
	w := builtWith(t, poolSpec("fast"), nil, withPools)
	require.Equal(t, "fast", w.rootPool())
	w.Manager.opts.Pools = nil
	err := w.removeFromHost(t.Context(), uuid)
	require.ErrorIs(t, err, storage.ErrNoPool)
	require.ErrorContains(t, err, "name the pool in [lxc] extra_pools again")
	_, ok, err := w.record(uuid)
	require.NoError(t, err)
	require.True(t, ok)
	w.Manager.opts.Pools = []string{"fast"}
	require.NoError(t, w.removeFromHost(t.Context(), uuid))
	_, ok, err = w.record(uuid)
	require.NoError(t, err)
	require.False(t, ok)
}

// TestPoolOfRescue: the rescue system is beside what it is to mend, whatever its image says.
func TestPoolOfRescue(t *testing.T) {
	t.Parallel()
	w := builtWith(t, poolSpec("fast"), nil, withPools)
	w.glance.images.add(otherImage, "active", map[string]any{"lxc_pool": "gold"})
	_, err := w.operate("rescue_instance", object.TaskStateRescuing, map[string]any{"rescue_image_ref": otherImage})
	require.NoError(t, err)
	require.Equal(t, "rescued/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, "fast", w.roots.roots[uuid+rescueSuffix].Pool)
}

// TestPoolOfRebuild: the new image may choose another pool, and the old root disk goes from where it was. If it cannot be reached there,
// nothing is touched.
func TestPoolOfRebuild(t *testing.T) {
	t.Parallel()
	w := built(t, withPools)
	w.glance.images.add(otherImage, "active", map[string]any{"lxc_pool": "slow"})
	w.glance.images.add(imageID, "active", nil)
	_, err := w.operate("rebuild_instance", object.TaskStateRebuilding, rebuildArgs(t, otherImage))
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, "slow", w.rootPool())

	before, _ := w.driver.Instance(uuid)
	w.Manager.opts.Pools = nil
	_, err = w.operate("rebuild_instance", object.TaskStateRebuilding, rebuildArgs(t, imageID))
	require.NoError(t, err)
	require.Contains(t, w.nova.Faults()[0], "name the pool in [lxc] extra_pools again")
	after, _ := w.driver.Instance(uuid)
	require.Equal(t, before.InitPID, after.InitPID)
	require.Equal(t, "slow", w.rootPool())
}

// TestMoveToAnotherPool: on its way to another host a root disk changes pools, with what is in it.
func TestMoveToAnotherPool(t *testing.T) {
	source, destination := twoHostsWith(t, poolSpec("fast"), nil, withPools)
	source.Manager.opts.Pools = []string{"fast"}
	destination.Manager.opts.Pools = []string{"slow"}
	destination.Roots = pooledRoots{destination.roots, 50 << 30}
	wanted := poolSpec("slow")
	wanted["id"] = 99
	destination.step("prep_resize", prepare(source, destination, source.flavorOf(wanted)))
	source.next("resize_instance")
	destination.next("finish_resize")
	require.Equal(t, "resized/-/"+otherHost, source.nova.States(uuid))
	require.Equal(t, "slow", destination.rootPool())
	content, err := os.ReadFile(filepath.Join(destination.roots.dir, uuid, "data/file"))
	require.NoError(t, err)
	require.Equal(t, "content", string(content))

	destination.step("revert_resize", revertArgs(source))
	source.next("finish_revert_resize")
	require.Equal(t, "active/-/"+testHost, source.nova.States(uuid))
	require.Equal(t, "fast", source.rootPool())
	local, err := destination.localInstances(t.Context())
	require.NoError(t, err)
	require.Empty(t, local)
}

// pooledRoots have pools with so much room each.
type pooledRoots struct {
	*fakeRoots
	free uint64
}

func (r pooledRoots) PoolUsage(context.Context, string) (storage.Usage, error) {
	return storage.Usage{Total: r.free, Free: r.free}, nil
}

// TestMoveToNoPool: before anything is moved the move is refused, on a host that has no such pool and on the
// server's own, and the server is as it was.
func TestMoveToNoPool(t *testing.T) {
	for name, c := range map[string]struct {
		here  bool
		pools []string
		fault string
	}{
		"unknown there": {false, []string{"fast"}, `has no storage pool "slow"`},
		"unknown here":  {true, []string{"fast"}, `has no storage pool "slow"`},
		"known here":    {true, []string{"fast", "slow"}, "wants storage pool slow, the server is in fast"},
	} {
		t.Run(name, func(t *testing.T) {
			source, destination := twoHostsWith(t, poolSpec("fast"), nil, withPools)
			if c.here {
				destination = source
			}
			destination.Manager.opts.Pools = c.pools
			wanted := poolSpec("slow")
			wanted["id"] = 99
			destination.step("prep_resize", prepare(source, destination, source.flavorOf(wanted)))
			destination.drain()
			require.Equal(t, "active/-/"+testHost, source.nova.States(uuid))
			require.Len(t, source.nova.Faults(), 1)
			require.Contains(t, source.nova.Faults()[0], c.fault)
			require.Empty(t, source.bus.asked, "no root disk was asked for")
			info, err := source.Driver.Info(t.Context(), uuid)
			require.NoError(t, err)
			require.Equal(t, driver.PowerStateRunning, info.PowerState)
		})
	}
}
