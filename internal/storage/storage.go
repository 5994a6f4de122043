// Package storage provides root disks: from an unpacked image in the store to a
// mounted root file system of the flavor's size, owned by the instance's id range.
package storage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// Errors that callers may test.
var (
	// ErrNoSpace: the file system that holds root disks has not enough room.
	ErrNoSpace = errors.New("no space left for root disks")
	// ErrUnsupported: the host's kernel or tools cannot do this back end; the message says what is missing.
	ErrUnsupported = errors.New("not supported by the storage of this host")
	// ErrNotFound: the instance has no root disk here.
	ErrNotFound = errors.New("root disk does not exist")
	// ErrTooSmall: a root disk's content would not fit into the size that is asked for.
	ErrTooSmall = errors.New("root disk holds more than that")
	// ErrNoPool: this host has no pool of that name.
	ErrNoPool = errors.New("storage pool does not exist on this host")
	// ErrBusy: something still uses a mounted root disk.
	ErrBusy = errors.New("root disk is busy")
)

// IDRange is the block of host ids that a guest's ids 0…Size-1 map to.
type IDRange struct {
	Base uint32
	Size uint32
}

// Root says which root disk is wanted.
type Root struct {
	InstanceID string  // instance UUID, see CheckID; names every file and mount
	ImagePath  string  // directory of the unpacked image in the store, un-shifted ids
	SizeGB     int     // flavor.root_gb; 0: no quota of its own
	IDs        IDRange //
	Nested     bool    // the guest wants to mount overlays itself
	Pool       string  `json:",omitempty"` // in which of Pools it is made; "": the host's default one
}

// idForm has no leading dot: those are the back ends' own.
var idForm = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_-]{0,127}(\.[a-z]{1,16})?$`)

// CheckID tells whether an instance id can name a disk: a UUID, or a UUID with a word behind a
// dot for a second disk of that instance ("<uuid>.rescue"). To a back end they are strangers.
func CheckID(id string) error {
	if !idForm.MatchString(id) {
		return fmt.Errorf("instance id %q is not a UUID", id)
	}
	return nil
}

// Owner is the instance that a disk belongs to: the id without the word behind the dot.
func Owner(id string) string {
	owner, _, _ := strings.Cut(id, ".")
	return owner
}

// Check refuses a request that no back end may carry out.
func (r Root) Check() error {
	if err := CheckID(r.InstanceID); err != nil {
		return err
	}
	if !filepath.IsAbs(r.ImagePath) || strings.ContainsAny(r.ImagePath, `:,\`) {
		return fmt.Errorf("image path %q is not an absolute path without ':', ',' and '\\'", r.ImagePath)
	}
	if r.SizeGB < 0 {
		return fmt.Errorf("size %d GiB is negative", r.SizeGB)
	}
	return r.IDs.Check()
}

// Check refuses ranges that a guest may not have.
func (r IDRange) Check() error {
	if r.Base == 0 || r.Size == 0 || uint64(r.Base)+uint64(r.Size) >= 1<<32 {
		return fmt.Errorf("id range %d+%d is not one that a guest may have", r.Base, r.Size)
	}
	return nil
}

// Backend makes, mounts and removes root disks.
//
// Every method is "make it so": repeating it is harmless, and Delete of what never
// existed succeeds. Create leaves nothing behind when it fails. Mount needs no image
// download and works after a host reboot from what Create left on disk.
// Unmount and Delete wait at most for ctx and report a busy disk as an error.
type Backend interface {
	Name() string
	Create(ctx context.Context, r Root) error
	Mount(ctx context.Context, r Root) (path string, err error)
	Unmount(ctx context.Context, instanceID string) error
	// Grow makes a root disk larger, mounted or not: a guest that runs sees it at once. One of that size is left
	// alone; ErrUnsupported: it is larger, or has no size of its own; ErrBusy: it cannot grow while it is mounted. A Grow
	// that was cut off or could not be done is completed by the next Mount of a disk that is not mounted.
	Grow(ctx context.Context, instanceID string, sizeGB int) error
	Delete(ctx context.Context, instanceID string) error
	// List returns the instance UUIDs that have a root disk here.
	List(ctx context.Context) ([]string, error)
	// Usage tells the pool's size and what is left, in bytes.
	Usage(ctx context.Context) (Usage, error)
}

// Copier is a back end that can copy a root disk as it is now, mounted or not.
type Copier interface {
	// Flush writes back what is written to a mounted root disk, so that a Copy soon after has little left to do.
	Flush(ctx context.Context, instanceID string) error
	// Copy makes the root disk to with the content and the properties of the root disk from; of to
	// its InstanceID counts alone. Nobody may write to from meanwhile: its guest is frozen or off. ErrUnsupported: this root
	// disk cannot be copied. ErrNoSpace: it would fill the pool; nothing was written then.
	Copy(ctx context.Context, from string, to Root) error
}

// Runner is a back end with work of its own to do in the background, such as
// removing the data of deleted root disks.
type Runner interface {
	// Run works until ctx ends and returns nil then.
	Run(ctx context.Context) error
}

// Device is a block device that an instance's data goes to.
type Device struct {
	Number string // "major:minor", of a whole disk
	Own    bool   // nobody else's data goes there
}

// Devicer is a back end that can tell which devices I/O limits must be set on.
type Devicer interface {
	// Devices returns the block devices of a mounted disk; none if there are none that the kernel could throttle.
	Devices(ctx context.Context, instanceID string) ([]Device, error)
}

// HealthChecker is a back end that can tell whether a root disk gains anything from being mounted anew.
type HealthChecker interface {
	// Healthy tells that a root disk is mounted, and that the kernel has met no error in a file system of its own.
	Healthy(ctx context.Context, instanceID string) (bool, error)
}

// Usage is a pool's size in bytes.
type Usage struct {
	Total uint64
	Free  uint64
}
