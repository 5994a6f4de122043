package compute

import (
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/rpc"
)

// addImage gives the fake Glance one more image.
func (w *world) addImage(id, diskFormat string, data []byte) {
	if w.glance.more == nil {
		w.glance.more = map[string]fakeImage{}
	}
	w.glance.more[id] = fakeImage{data: data, record: fmt.Sprintf(
		`{"id": %q, "status": "active", "size": %d, "disk_format": %q, "container_format": "bare", "os_hash_algo": "sha512", "os_hash_value": "%x"}`,
		id, len(data), diskFormat, sha512.Sum512(data))}
}

func (w *world) cache(ids ...string) map[string]string {
	w.t.Helper()
	result, err := w.call(user(w.t), "cache_images", rpc.Args{"image_ids": novatest.Raw(ids)})
	require.NoError(w.t, err)
	wire, err := json.Marshal(result)
	require.NoError(w.t, err)
	var got map[string]string
	require.NoError(w.t, json.Unmarshal(wire, &got))
	return got
}

const (
	goodImage   = "11111111-1111-4111-8111-111111111111"
	brokenImage = "22222222-2222-4222-8222-222222222222"
	goneImage   = "33333333-3333-4333-8333-333333333333"
)

// TestCacheImages: every image has its own outcome.
func TestCacheImages(t *testing.T) {
	t.Parallel()
	for _, parallel := range []int{0, 1, 3} {
		w := newWorld(t, func(o *Options) { o.PrecacheConcurrency = parallel })
		w.addImage(goodImage, "raw", image(t))
		w.addImage(brokenImage, "raw", []byte("not a root file system"))
		want := map[string]string{goodImage: "cached", brokenImage: "error", goneImage: "error"}
		require.Equal(t, want, w.cache(goodImage, brokenImage, goneImage, goodImage))
		want[goodImage] = "existing"
		require.Equal(t, want, w.cache(brokenImage, goneImage, goodImage))
		require.Len(t, w.images(), 1)
		require.Empty(t, w.cache())
	}
}

// TestCacheImagesDuringBoot: a boot and the cache share one download.
func TestCacheImagesDuringBoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.addImage(imageID, "raw", w.glance.data)
	w.plugEvents("completed")
	const file = "glance GET /images/" + imageID + "/file"
	release := w.trail.block(file)
	defer release()
	var both sync.WaitGroup
	both.Go(func() {
		_, err := w.handler("build_and_run_instance")(user(t), w.buildArgs(nil))
		require.NoError(t, err)
	})
	eventually(t, "the boot's download", func() bool { return len(w.stored.Transfers()) == 1 })
	var got map[string]string
	both.Go(func() { got = w.cache(imageID) })
	eventually(t, "two wait for one download", func() bool {
		flying := w.stored.Transfers()
		return len(flying) == 1 && flying[0].Waiting == 2
	})
	release()
	both.Wait()
	w.drain()
	require.Equal(t, map[string]string{imageID: "cached"}, got)
	downloads := 0
	for _, line := range w.trail.all() {
		if line == file {
			downloads++
		}
	}
	require.Equal(t, 1, downloads)
}

// TestImageCacheManager: ages, the switch, and what is in use.
func TestImageCacheManager(t *testing.T) {
	t.Parallel()
	pass := func(w *world) []string {
		require.NoError(t, w.manageImageCache(adminContext(t.Context())))
		ids := []string{}
		for _, img := range w.images() {
			ids = append(ids, img.ID)
		}
		return ids
	}
	cached := func(change func(*Options)) *world {
		w := built(t, change)
		w.addImage(goodImage, "raw", image(t))
		w.cache(goodImage)
		return w
	}
	w := cached(func(o *Options) { o.RemoveUnusedImages, o.UnusedImageAge = true, time.Hour })
	require.Equal(t, []string{goodImage, imageID}, pass(w), "too young")
	w = cached(func(o *Options) { o.RemoveUnusedImages = true })
	require.Equal(t, []string{imageID}, pass(w), "in use by an instance")
	w = cached(func(*Options) {})
	require.Equal(t, []string{goodImage, imageID}, pass(w), "remove_unused_base_images is off")
	w = cached(func(o *Options) { o.ImageCacheMaxBytes = 1 })
	require.Equal(t, []string{imageID}, pass(w), "the cap holds without an age")

	w = built(t, func(o *Options) { o.RemoveUnusedImages = true })
	require.NoError(t, w.Images.Release(imageID, uuid)) // a crash lost it
	require.Equal(t, []string{imageID}, pass(w))
	require.Equal(t, []string{uuid}, w.images()[0].Instances)
	require.NoError(t, w.Images.Acquire(imageID, goneImage)) // a crash left it
	require.Equal(t, []string{imageID}, pass(w))
	require.Equal(t, []string{uuid}, w.images()[0].Instances)
	_, err := w.operate("terminate_instance", "deleting", map[string]any{"bdms": []any{}})
	require.NoError(t, err)
	require.Empty(t, pass(w), "nobody uses it any more")
}

// TestImageOfBuildInFlight: an image is in use from the moment a build asks for it.
func TestImageOfBuildInFlight(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) { o.RemoveUnusedImages = true })
	w.plugEvents("completed")
	release := w.trail.block("root.create")
	defer release()
	_, err := w.handler("build_and_run_instance")(user(t), w.buildArgs(nil))
	require.NoError(t, err)
	for deadline := time.Now().Add(patience); len(w.images()) == 0 || len(w.images()[0].Instances) == 0; {
		require.True(t, time.Now().Before(deadline), "the build has lost its image")
		require.NoError(t, w.manageImageCache(adminContext(t.Context())))
	}
	require.NoError(t, w.manageImageCache(adminContext(t.Context())))
	require.Len(t, w.images(), 1)
	release()
	w.drain()
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
}
