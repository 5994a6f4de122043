package compute

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/compute/glanceimage"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// What became of an image that was to be cached (nova/compute/manager.py:cache_images).
const (
	imageExisting = "existing"
	imageCached   = "cached"
	imageFailed   = "error"
)

// cacheImages brings images into the store before anybody boots them, for "openstack
// aggregate cache image" (nova/compute/manager.py:cache_images). One that cannot be cached
// does not fail the others. The conductor sends the progress notification of each host.
func (m *Manager) cacheImages(ctx context.Context, args rpc.Args) (any, error) {
	var ids []string
	if err := args.Decode("image_ids", &ids); err != nil {
		return nil, err
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	var mu sync.Mutex // guards results
	results := make(map[string]string, len(ids))
	var g errgroup.Group
	g.SetLimit(max(m.opts.PrecacheConcurrency, 1))
	for _, id := range ids {
		g.Go(func() error {
			ctx, result := reqctx.WithField(ctx, "image_id", id), imageFailed
			err := protect(ctx, func() (err error) {
				result, err = m.cacheImage(ctx, id)
				return err
			})
			if err != nil {
				result = imageFailed
				reqctx.Log(ctx).WithError(err).Warning("image not cached")
			}
			mu.Lock()
			defer mu.Unlock()
			results[id] = result
			return nil
		})
	}
	_ = g.Wait() // failures are in the results
	return results, nil
}

// cacheImage brings one image into the store; a boot of the same image that is under way
// shares its download.
func (m *Manager) cacheImage(ctx context.Context, id string) (string, error) {
	started := time.Now()
	found, err := m.Glance.Show(ctx, id)
	if err != nil {
		return imageFailed, imageError(id, err)
	}
	image := glanceimage.Image(&found)
	if _, have, err := m.Images.Get(ctx, image.ID); err != nil || have {
		return imageExisting, err
	}
	synced, err := m.syncProven(ctx, glanceimage.Request(m.Glance, &image, m.opts.HostArch), m.trust(nil))
	if err != nil {
		return imageFailed, err
	}
	reqctx.Log(ctx).WithField("bytes", synced.Size).WithField("elapsed", time.Since(started).Round(time.Millisecond)).Info("image cached")
	return imageCached, nil
}

// manageImageCache removes images that no instance uses, when they are old enough or the
// store is too large (nova/compute/manager.py:_run_image_cache_manager_pass). The age counts
// from the last use.
func (m *Manager) manageImageCache(ctx context.Context) error {
	if err := m.reconcileImageUse(ctx); err != nil {
		return fmt.Errorf("compare the use of images: %w", err)
	}
	policy := imagesync.Policy{Unused: -1, MaxBytes: m.opts.ImageCacheMaxBytes}
	if m.opts.RemoveUnusedImages {
		policy.Unused = m.opts.UnusedImageAge
	}
	removed, err := m.Images.Prune(ctx, policy)
	for _, p := range removed {
		reqctx.Log(ctx).WithField("image_id", p.ID).WithField("bytes", p.Bytes).WithField("reason", p.Reason).Info("unused image removed")
	}
	return err
}

// reconcileImageUse makes the store's references agree with what is on this host: a crash
// between two writes may have lost one, or left one of an instance that is gone.
func (m *Manager) reconcileImageUse(ctx context.Context) error {
	records, err := listRecords(m.DB)
	if err != nil {
		return err
	}
	images, err := m.Images.List(ctx)
	if err != nil {
		return err
	}
	users := map[string][]string{} // instances by image
	for _, image := range images {
		users[image.ID] = image.Instances
	}
	for uuid, r := range records {
		if instances, ok := users[r.ImageID]; ok && !slices.Contains(instances, uuid) {
			if err := m.Images.Acquire(r.ImageID, uuid); err != nil && !errors.Is(err, imagesync.ErrNotFound) {
				return err
			}
		}
	}
	local, err := m.localInstances(ctx)
	if err != nil {
		return err
	}
	for image, instances := range users {
		for _, ref := range instances {
			if local[instanceOf(ref)] {
				continue
			}
			if err := m.releaseStale(ctx, image, ref); err != nil {
				return err
			}
		}
	}
	return nil
}

// instanceOf gives the instance of a reference, which may have more behind its UUID.
func instanceOf(ref string) string {
	const uuidLength = 36
	return ref[:min(len(ref), uuidLength)]
}

// releaseStale takes back the reference of an instance of which nothing is on this host.
func (m *Manager) releaseStale(ctx context.Context, image, ref string) error {
	uuid := instanceOf(ref)
	unlock, err := m.locks.Lock(ctx, uuid)
	if err != nil {
		return err
	}
	defer unlock()
	if m.journal.Building(uuid) {
		return nil
	}
	local, err := m.localInstances(ctx)
	if err != nil || local[uuid] {
		return err
	}
	reqctx.Log(ctx).WithField("instance", uuid).WithField("image_id", image).Warning("image was in use by an instance that is not on this host")
	return m.Images.Release(image, ref)
}
