// Package nowhere is what a host of the fake driver has in the place of disks, images, config drives and links: it says yes to
// everything and keeps nothing, in memory or elsewhere, so that the manager does all that it does and the machine stays as it is. It
// needs no privilege, and any number of agents can use it on one machine.
package nowhere

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/configdrive"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ephemeral"
	"github.com/compute-agent/compute-agent/vif"
)

// Roots are root disks without content: each is the directory Tree.
type Roots struct {
	Tree string        // an empty directory
	Size storage.Usage // of each pool, whatever its name
}

var (
	_ storage.Pooled      = Roots{}
	_ storage.Copier      = Roots{}
	_ storage.Shrinker    = Roots{}
	_ storage.Contentless = Roots{}
)

// Name implements storage.Backend.
func (r Roots) Name() string { return "nowhere" }

// Create implements storage.Backend.
func (r Roots) Create(context.Context, storage.Root) error { return nil }

// Mount implements storage.Backend.
func (r Roots) Mount(context.Context, storage.Root) (string, error) { return r.Tree, nil }

// Unmount implements storage.Backend.
func (r Roots) Unmount(context.Context, string) error { return nil }

// Grow implements storage.Backend.
func (r Roots) Grow(context.Context, string, int) error { return nil }

// Shrink implements storage.Shrinker.
func (r Roots) Shrink(context.Context, string, int) error { return nil }

// Delete implements storage.Backend.
func (r Roots) Delete(context.Context, string) error { return nil }

// List implements storage.Backend.
func (r Roots) List(context.Context) ([]string, error) { return nil, nil }

// Usage implements storage.Backend.
func (r Roots) Usage(context.Context) (storage.Usage, error) { return r.Size, nil }

// PoolUsage implements storage.Pooled.
func (r Roots) PoolUsage(context.Context, string) (storage.Usage, error) { return r.Size, nil }

// Flush implements storage.Copier.
func (r Roots) Flush(context.Context, string) error { return nil }

// Copy implements storage.Copier.
func (r Roots) Copy(context.Context, string, storage.Root) error { return nil }

// Contentless implements storage.Contentless.
func (r Roots) Contentless() {}

// Disks are ephemeral disks of any format, which no guest sees.
type Disks struct{}

// CheckFormat takes every format.
func (Disks) CheckFormat(string) error { return nil }

// Create makes nothing.
func (Disks) Create(context.Context, ephemeral.Disks) error { return nil }

// Mount has no paths.
func (Disks) Mount(context.Context, string) ([]string, error) { return nil, nil }

// Unmount does nothing.
func (Disks) Unmount(context.Context, string) error { return nil }

// Grow does nothing.
func (Disks) Grow(context.Context, string, string, int) error { return nil }

// Shrink does nothing.
func (Disks) Shrink(context.Context, string, string, int) error { return nil }

// Used tells of no disk.
func (Disks) Used(context.Context, string) ([]uint64, error) { return nil, nil }

// Delete does nothing.
func (Disks) Delete(context.Context, string) error { return nil }

// List tells of no disk.
func (Disks) List(context.Context) ([]string, error) { return nil, nil }

// Images is an image store that asks nobody for an image's data.
type Images struct {
	Tree string // an empty directory, every image's root file system
}

// Get knows no image.
func (Images) Get(context.Context, string) (imagesync.Image, bool, error) {
	return imagesync.Image{}, false, nil
}

// List knows no image.
func (Images) List(context.Context) ([]imagesync.Image, error) { return nil, nil }

// Sync says that the image is there, and fetches nothing: no hash is known of it, so no signature can be verified.
func (i Images) Sync(_ context.Context, r imagesync.Request) (imagesync.Image, error) {
	now := time.Now()
	return imagesync.Image{
		ID: r.ID, Path: i.Tree, Metadata: imagesync.Metadata{Architecture: r.HostArch}, Size: max(r.Size, 0), Imported: now, LastUsed: now,
	}, nil
}

// Hold does nothing.
func (Images) Hold(string) (release func()) { return func() {} }

// Acquire does nothing.
func (Images) Acquire(string, string) error { return nil }

// Release does nothing.
func (Images) Release(string, string) error { return nil }

// Prune has nothing to remove.
func (Images) Prune(context.Context, imagesync.Policy) ([]imagesync.Pruned, error) { return nil, nil }

// Drives are config drives that nobody reads.
type Drives struct{}

// Path is a name that does not exist.
func (Drives) Path(instanceUUID string) string { return "/nowhere/" + instanceUUID }

// Write forgets the documents.
func (Drives) Write(context.Context, string, uint32, []configdrive.Document) error { return nil }

// Mount does nothing.
func (Drives) Mount(string) error { return nil }

// Unmount does nothing.
func (Drives) Unmount(context.Context, string) error { return nil }

// Remove does nothing.
func (Drives) Remove(context.Context, string) error { return nil }

// Shares are directories of the host that no guest sees: of every name there is one.
type Shares struct{}

// Path is a name that does not exist.
func (Shares) Path(instanceID, name string) string { return "/nowhere/" + instanceID + "/" + name }

// Check finds all.
func (Shares) Check([]string) error { return nil }

// Mount does nothing.
func (Shares) Mount(string, storage.IDRange, []string) error { return nil }

// Unmount does nothing.
func (Shares) Unmount(string) error { return nil }

// Remove does nothing.
func (Shares) Remove(string) error { return nil }

// Plugger wires no port, of whatever type.
type Plugger struct{}

var _ vif.Plugger = Plugger{}

// Plug gives the names that the ends would have.
func (Plugger) Plug(_ context.Context, v vif.VIF) (vif.Link, error) {
	return vif.Link{Host: v.HostDevice(), Peer: vif.PeerName(v.PortID), MAC: v.MAC, MTU: v.MTU}, nil
}

// Unplug does nothing.
func (Plugger) Unplug(context.Context, vif.VIF) error { return nil }
