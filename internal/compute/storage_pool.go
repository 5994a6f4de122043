package compute

import (
	"context"
	"fmt"
	"slices"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// poolOf is the storage pool that a root disk is made in, "" being the default one: the flavor's, else the
// image's. A pool that this host lacks, or does not leave to images, may be another host's: ComputeResourcesUnavailable
// gives the build or the move to the next one.
func (m *Manager) poolOf(f *object.Flavor, property func(key string) string) (string, error) {
	name, byImage := flavor.Pool(f.ExtraSpecs, property(flavor.ImagePool))
	whose := "flavor " + f.Name
	if byImage {
		whose = "the image's property " + flavor.ImagePool
	}
	switch {
	case name == "":
		return "", nil
	case !slices.Contains(m.opts.Pools, name):
		return "", exception.ComputeResourcesUnavailable(fmt.Sprintf("host %s has no storage pool %q, which %s asks for", m.opts.Host, name, whose))
	case byImage && !slices.Contains(m.opts.ImagePools, name):
		return "", exception.ComputeResourcesUnavailable(fmt.Sprintf("%s asks for storage pool %q, which host %s does not leave to images ([lxc] image_pools)",
			whose, name, m.opts.Host))
	}
	return name, nil
}

// choosePool finds out in which pool the root disk is to be. One that it replaces must be where it can be removed.
func (s *spawn) choosePool() (err error) {
	if err := s.m.checkPool(s.rec.Root.Pool); err != nil {
		return err
	}
	s.pool, err = s.m.poolOf(s.inst.Flavor, s.r.Image.Property)
	return err
}

// poolOfMove is poolOf for a server that comes here, or gets another flavor. The message has only the
// properties that nova knows; the instance has them all.
func (m *Manager) poolOfMove(mv *move) (string, error) {
	return m.poolOf(mv.flavor, func(key string) string { return mv.inst.System("image_" + key) })
}

// checkMovedPool refuses a move to a pool that is not here, and one from pool to pool on this host: a root disk goes to
// another pool on its way to another host, and stays here, as it was, until the user confirms.
func (m *Manager) checkMovedPool(mv *move) error {
	wanted, err := m.poolOfMove(mv)
	if err != nil || !m.same(mv) {
		return err
	}
	rec, ok, err := m.record(mv.inst.UUID)
	if err != nil || !ok || rec.Root.Pool == wanted { // what else is wrong with a missing record, the resize tells
		return err
	}
	return exception.ComputeResourcesUnavailable(fmt.Sprintf("flavor %s wants storage pool %s, the server is in %s: on the way to another host its root disk can change pools, on host %s it cannot",
		mv.flavor.Name, poolTitle(wanted), poolTitle(rec.Root.Pool), m.opts.Host))
}

func poolTitle(name string) string {
	if name == "" {
		return "default"
	}
	return name
}

// checkPool tells that a root disk cannot be reached because its pool was taken out of the configuration. Its
// record must stay: the disk is there still.
func (m *Manager) checkPool(name string) error {
	if name == "" || slices.Contains(m.opts.Pools, name) {
		return nil
	}
	return fmt.Errorf("%w: %q; the root disk is there: name the pool in [lxc] extra_pools again", storage.ErrNoPool, name)
}

// freeFor is the room for disks that come here: in the root disk's pool and, if there are ephemeral ones, in the default one.
func (m *Manager) freeFor(ctx context.Context, pool string, ephemeral bool) (uint64, error) {
	main, err := m.Roots.Usage(ctx)
	if pool == "" || err != nil {
		return main.Free, err
	}
	pooled, ok := m.Roots.(storage.Pooled)
	if !ok {
		return 0, fmt.Errorf("%w: %q", storage.ErrNoPool, pool)
	}
	usage, err := pooled.PoolUsage(ctx, pool)
	if ephemeral {
		usage.Free += main.Free
	}
	return usage.Free, err
}
