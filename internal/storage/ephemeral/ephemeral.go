// Package ephemeral keeps the local disks that an instance has beside its root disk: file
// systems of a fixed size in sparse files, whatever the back end of the root disks. They live
// as long as the instance, over reboots, resizes and moves to other hosts; images of the instance are without them.
//
//	<dir>/<instance>/ephemeral0.img   the file system
//	<dir>/<instance>/ephemeral0/      where it is mounted, owned by the guest's root
package ephemeral

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ext4"
	"github.com/compute-agent/compute-agent/internal/storage/loop"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
	"github.com/compute-agent/compute-agent/internal/storage/xfs"
)

const imageSuffix = ".img"

// Disk is one file system.
type Disk struct {
	Name   string // of the file and the mount point, and the label
	SizeGB int
	Format string // one of Formats
}

// Disks are all that an instance has.
type Disks struct {
	InstanceID string
	IDs        storage.IDRange
	Disks      []Disk
}

// Store holds the disks of a host.
type Store struct {
	pool *pool.Pool[Disks]
}

// Open opens the disks in dir, making it if needed.
func Open(dir string) (*Store, error) {
	p, err := pool.Open[Disks](dir, pool.Options{Record: "disks.json", Drop: drop})
	if err != nil {
		return nil, err
	}
	return &Store{pool: p}, nil
}

// driver makes and mounts one format.
type driver struct {
	program  string // without which it cannot be made
	inTools  string
	create   func(ctx context.Context, path string, d Disk) error
	mount    func(ctx context.Context, path, target string, sizeGB int) error
	grow     func(ctx context.Context, path string, sizeGB int) error
	shrink   func(ctx context.Context, path string, d Disk) error
	shutdown func(path string) error
}

var drivers = map[string]driver{
	"ext4": {
		ext4.Program, "e2fsprogs",
		func(ctx context.Context, path string, d Disk) error {
			return ext4.Create(ctx, path, ext4.Format{SizeGB: d.SizeGB, Label: d.Name})
		},
		ext4.Mount, ext4.Grow,
		func(ctx context.Context, path string, d Disk) error { return ext4.Shrink(ctx, path, d.SizeGB) },
		ext4.Shutdown,
	},
	"xfs": {
		xfs.Program, "xfsprogs",
		func(ctx context.Context, path string, d Disk) error { return xfs.Create(ctx, path, d.SizeGB, d.Name) },
		func(_ context.Context, path, target string, sizeGB int) error { return xfs.Mount(path, target, sizeGB) },
		func(_ context.Context, path string, sizeGB int) error { return xfs.Grow(path, sizeGB) },
		func(ctx context.Context, path string, d Disk) error { return xfs.Shrink(ctx, path, d.SizeGB, d.Name) },
		xfs.Shutdown,
	},
}

// Formats are the names of the file systems that can be asked for.
func Formats() []string { return []string{"ext4", "xfs"} }

// CheckFormat tells whether this host can make and mount a file system: storage.ErrUnsupported says
// what is missing.
func CheckFormat(format string) error {
	d, ok := drivers[format]
	if !ok {
		return fmt.Errorf("%w: no disks with a file system %q; there are %s", storage.ErrUnsupported, format, strings.Join(Formats(), " and "))
	}
	if _, err := os.Stat(d.program); err != nil {
		return fmt.Errorf("%w: no disks with a file system %q: %s is missing (package %s)", storage.ErrUnsupported, format, d.program, d.inTools)
	}
	known, err := mount.Supported(format)
	if err == nil && !known {
		err = fmt.Errorf("%w: no disks with a file system %q: the kernel has none", storage.ErrUnsupported, format)
	}
	return err
}

// CheckFormat tells whether this host can make and mount a file system, as the function does.
func (s *Store) CheckFormat(format string) error { return CheckFormat(format) }

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`) // as long as a label of XFS

func (d Disks) check() error {
	if err := storage.CheckID(d.InstanceID); err != nil {
		return err
	}
	for i, disk := range d.Disks {
		if !nameForm.MatchString(disk.Name) || slices.ContainsFunc(d.Disks[:i], func(o Disk) bool { return o.Name == disk.Name }) {
			return fmt.Errorf("%q is no name for a disk, or there are two", disk.Name)
		}
		if disk.SizeGB <= 0 {
			return fmt.Errorf("disk %s of %d GiB", disk.Name, disk.SizeGB)
		}
		if err := CheckFormat(disk.Format); err != nil {
			return err
		}
	}
	return d.IDs.Check()
}

// Create makes an instance's disks; those that exist are left as they are. Nothing is left behind
// when it fails.
func (s *Store) Create(ctx context.Context, d Disks) error {
	err := d.check()
	if err == nil {
		err = s.pool.Add(d.InstanceID, d, func(dir string) error {
			for _, disk := range d.Disks {
				if err := drivers[disk.Format].create(ctx, filepath.Join(dir, disk.Name+imageSuffix), disk); err != nil {
					return fmt.Errorf("%s: %w", disk.Name, err)
				}
			}
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("create ephemeral disks of %s: %w", d.InstanceID, err)
	}
	return nil
}

// Mount mounts an instance's disks on the host and returns the paths in the order of the disks: none for
// an instance without.
func (s *Store) Mount(ctx context.Context, instanceID string) ([]string, error) {
	d, err := s.pool.Get(instanceID)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("mount ephemeral disks: %w", err)
	}
	paths := make([]string, 0, len(d.Disks))
	for _, disk := range d.Disks {
		path := s.pool.Path(instanceID, disk.Name)
		if err := s.mount(ctx, d, disk, path); err != nil {
			return nil, fmt.Errorf("mount %s of %s: %w", disk.Name, instanceID, err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

func (s *Store) mount(ctx context.Context, d Disks, disk Disk, path string) error {
	mounted, err := mount.Is(path)
	if err != nil {
		return err
	}
	if !mounted {
		if err := mount.Point(path); err != nil {
			return err
		}
		if err := drivers[disk.Format].mount(ctx, path+imageSuffix, path, disk.SizeGB); err != nil {
			return err
		}
	}
	return give(d.IDs, path)
}

// give makes the guest's root the owner of a disk that is the host's still.
func give(ids storage.IDRange, path string) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing was written
	info, err := root.Stat(".")
	if err != nil || owner(info) != 0 {
		return err
	}
	// What mkfs put there belongs to nobody the guest knows.
	if err := root.Remove("lost+found"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return root.Chown(".", int(ids.Base), int(ids.Base)) // last: it says that all is done
}

// Unmount unmounts an instance's disks; without any it does nothing.
func (s *Store) Unmount(ctx context.Context, instanceID string) error {
	if err := s.pool.Unmount(ctx, instanceID); err != nil {
		return fmt.Errorf("unmount ephemeral disks of %s: %w", instanceID, err)
	}
	return nil
}

// Grow makes one disk larger, mounted or not, as storage.Backend.Grow does.
func (s *Store) Grow(ctx context.Context, instanceID, name string, sizeGB int) error {
	d, i, err := s.find(instanceID, name)
	switch {
	case err != nil:
	case sizeGB < d.Disks[i].SizeGB:
		err = fmt.Errorf("%w: it has %d GiB already", storage.ErrUnsupported, d.Disks[i].SizeGB)
	case sizeGB > d.Disks[i].SizeGB:
		d.Disks[i].SizeGB = sizeGB
		err = s.pool.Set(instanceID, d) // first: Mount goes by it
	}
	if err == nil {
		err = drivers[d.Disks[i].Format].grow(ctx, s.pool.Path(instanceID, name+imageSuffix), sizeGB)
	}
	if err != nil {
		return fmt.Errorf("grow %s of %s: %w", name, instanceID, err)
	}
	return nil
}

// Shrink makes one disk smaller, which must not be mounted. storage.ErrTooSmall: it holds more than that, and stays
// as it is. The record follows: a disk that is smaller than its record grows at the next mount.
func (s *Store) Shrink(ctx context.Context, instanceID, name string, sizeGB int) error {
	d, i, err := s.find(instanceID, name)
	if err == nil && (sizeGB <= 0 || sizeGB > d.Disks[i].SizeGB) {
		err = fmt.Errorf("%w: from %d to %d GiB", storage.ErrUnsupported, d.Disks[i].SizeGB, sizeGB)
	}
	if err == nil && sizeGB == d.Disks[i].SizeGB {
		return nil
	}
	if err == nil {
		d.Disks[i].SizeGB = sizeGB
		err = drivers[d.Disks[i].Format].shrink(ctx, s.pool.Path(instanceID, name+imageSuffix), d.Disks[i])
	}
	if err == nil {
		err = s.pool.Set(instanceID, d)
	}
	if err != nil {
		return fmt.Errorf("shrink %s of %s: %w", name, instanceID, err)
	}
	return nil
}

// Used tells what is in use of each of an instance's disks, in their order, and mounts them for that.
func (s *Store) Used(ctx context.Context, instanceID string) ([]uint64, error) {
	paths, err := s.Mount(ctx, instanceID)
	if err != nil {
		return nil, err
	}
	used := make([]uint64, 0, len(paths))
	for _, path := range paths {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil {
			return nil, fmt.Errorf("read size of %s: %w", path, err)
		}
		used = append(used, (st.Blocks-st.Bfree)*uint64(st.Bsize)) //nolint:gosec // positive
	}
	return used, nil
}

// find reads the record of an instance, and where in it a disk is.
func (s *Store) find(instanceID, name string) (Disks, int, error) {
	d, err := s.pool.Get(instanceID)
	if err != nil {
		return d, -1, err
	}
	i := slices.IndexFunc(d.Disks, func(disk Disk) bool { return disk.Name == name })
	if i < 0 {
		return d, -1, storage.ErrNotFound
	}
	return d, i, nil
}

// Delete throws an instance's disks away; without any it does nothing.
func (s *Store) Delete(ctx context.Context, instanceID string) error {
	if err := s.pool.Delete(ctx, instanceID); err != nil {
		return fmt.Errorf("delete ephemeral disks of %s: %w", instanceID, err)
	}
	return nil
}

// drop stops the file systems in an instance's directory, whatever they are.
func drop(dir string) error {
	images, err := filepath.Glob(filepath.Join(dir, "*"+imageSuffix))
	errs := []error{err}
	for _, image := range images {
		kind, err := mount.Type(strings.TrimSuffix(image, imageSuffix))
		if d, ok := drivers[kind]; ok && err == nil {
			err = d.shutdown(image)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Devices implements storage.Devicer for the disks that are mounted.
func (s *Store) Devices(_ context.Context, instanceID string) ([]storage.Device, error) {
	d, err := s.pool.Get(instanceID)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var devices []storage.Device
	for _, disk := range d.Disks {
		number, err := loop.Number(s.pool.Path(instanceID, disk.Name+imageSuffix))
		if err != nil {
			return nil, err
		}
		if number != "" {
			devices = append(devices, storage.Device{Number: number, Own: true})
		}
	}
	return devices, nil
}

// List returns the instances that have disks here.
func (s *Store) List(context.Context) ([]string, error) { return s.pool.List() }

// Run removes the data of deleted disks until ctx ends.
func (s *Store) Run(ctx context.Context) error { return s.pool.Run(ctx) }
