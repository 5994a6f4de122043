// Package storage provides root disks: from an unpacked image in the store to a
// mounted root file system of the flavor's size, owned by the instance's id range.
package storage

import (
	"context"
	"errors"
)

// Errors that callers may test.
var (
	// ErrNoSpace: the file system that holds root disks has not enough room.
	ErrNoSpace = errors.New("no space left for root disks")
	// ErrUnsupported: the host's kernel or tools cannot do this back end; the message says what is missing.
	ErrUnsupported = errors.New("storage back end is not supported on this host")
	// ErrNotFound: the instance has no root disk here.
	ErrNotFound = errors.New("root disk does not exist")
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
	InstanceID string  // instance UUID; names every file and mount
	ImagePath  string  // directory of the unpacked image in the store, un-shifted ids
	SizeGB     int     // flavor.root_gb; 0: no quota of its own
	IDs        IDRange //
	Nested     bool    // the guest wants to mount overlays itself
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
	Delete(ctx context.Context, instanceID string) error
	// List returns the instance UUIDs that have a root disk here.
	List(ctx context.Context) ([]string, error)
	// Usage tells the pool's size and what is left, in bytes.
	Usage(ctx context.Context) (Usage, error)
}

// Runner is a back end with work of its own to do in the background, such as
// removing the data of deleted root disks.
type Runner interface {
	// Run works until ctx ends and returns nil then.
	Run(ctx context.Context) error
}

// Usage is a pool's size in bytes.
type Usage struct {
	Total uint64
	Free  uint64
}
