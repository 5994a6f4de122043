package btrfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of include/uapi/linux/btrfs.h and what they take.
const (
	ioctlSubvolumeCreate   = 0x50009418
	ioctlSnapshotCreate    = 0x50009417
	ioctlSnapshotDestroy   = 0x5000940f
	ioctlLookup            = 0xd0009412
	noCopyOnWrite          = 0x00800000 // FS_NOCOW_FL of include/uapi/linux/fs.h
	firstSubvolumeObjectID = 256        // the inode of every subvolume's root
)

// The structs of the same file; what is always 0 here has no name.

// volumeArgs is struct btrfs_ioctl_vol_args.
type volumeArgs struct {
	_    int64
	name [4088]byte
}

// volumeArgs2 is struct btrfs_ioctl_vol_args_v2.
type volumeArgs2 struct {
	fd   int64
	_    [6]uint64
	name [4040]byte
}

// lookupArgs is struct btrfs_ioctl_ino_lookup_args.
type lookupArgs struct {
	tree, object uint64
	_            [4080]byte
}

func ioctl[T any](fd uintptr, request uintptr, arg *T) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(arg))); errno != 0 { //nolint:gosec // the kernel wants an address
		return errno
	}
	return nil
}

// in runs do with the directory that holds path, and the name in it.
func in(path string, do func(parent uintptr, name string) error) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // nothing was written through it
	return do(dir.Fd(), filepath.Base(path))
}

// at runs do with a directory itself.
func at(path string, do func(fd uintptr) error) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // nothing was written through it
	return do(dir.Fd())
}

func createSubvolume(path string) error {
	err := in(path, func(parent uintptr, name string) error {
		var args volumeArgs2
		copy(args.name[:len(args.name)-1], name)
		return ioctl(parent, ioctlSubvolumeCreate, &args)
	})
	if err != nil {
		return fmt.Errorf("create subvolume: %w", err)
	}
	return nil
}

// snapshot makes the subvolume target, which shares all blocks with the subvolume source.
func snapshot(source, target string) error {
	err := at(source, func(from uintptr) error {
		return in(target, func(parent uintptr, name string) error {
			args := volumeArgs2{fd: int64(from)} //nolint:gosec // descriptors are small
			copy(args.name[:len(args.name)-1], name)
			return ioctl(parent, ioctlSnapshotCreate, &args)
		})
	})
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", source, err)
	}
	return nil
}

// destroy removes a subvolume at once; the kernel frees its blocks later. What is no subvolume is removed file by file.
func destroy(path string) error {
	id, err := subvolume(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if id == 0 {
		return os.RemoveAll(path)
	}
	remove := func() error {
		return in(path, func(parent uintptr, name string) error {
			var args volumeArgs
			copy(args.name[:len(args.name)-1], name)
			return ioctl(parent, ioctlSnapshotDestroy, &args)
		})
	}
	err = remove()
	if errors.Is(err, unix.ENOTEMPTY) { // a guest whose seccomp policy allows it has made some inside
		if err = destroyWithin(path); err == nil {
			err = remove()
		}
	}
	if err != nil {
		return fmt.Errorf("destroy subvolume %s: %w", path, err)
	}
	return nil
}

// destroyWithin removes the subvolumes below a directory. Links are not followed.
func destroyWithin(path string) error {
	return filepath.WalkDir(path, func(at string, d fs.DirEntry, err error) error {
		if err != nil || at == path || !d.IsDir() {
			return err
		}
		id, err := subvolume(at)
		if err != nil || id == 0 {
			return err
		}
		if err := destroy(at); err != nil {
			return err
		}
		return fs.SkipDir
	})
}

// subvolume is the number of a subvolume; 0: path is an ordinary directory.
func subvolume(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, &os.PathError{Op: "look at", Path: path, Err: err}
	}
	if st.Ino != firstSubvolumeObjectID || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return 0, nil
	}
	args := lookupArgs{object: firstSubvolumeObjectID}
	if err := at(path, func(fd uintptr) error { return ioctl(fd, ioctlLookup, &args) }); err != nil {
		return 0, fmt.Errorf("look up subvolume %s: %w", path, err)
	}
	return args.tree, nil
}

// writeInPlace has the files that will be made in a directory overwritten where they are, without checksums, as the
// files of disks should be (btrfs(5), "chattr +C"): a guest's file system changes blocks while they are written directly, which
// would leave checksums of other content than the block's. What two files share is copied all the same when one is written.
func writeInPlace(dir string) error {
	err := at(dir, func(fd uintptr) error {
		flags, err := unix.IoctlGetUint32(int(fd), unix.FS_IOC_GETFLAGS)
		if err != nil || flags&noCopyOnWrite != 0 {
			return err
		}
		return unix.IoctlSetPointerInt(int(fd), unix.FS_IOC_SETFLAGS, int(flags|noCopyOnWrite))
	})
	if err != nil {
		return fmt.Errorf("have files of %s written in place: %w", dir, err)
	}
	return nil
}
