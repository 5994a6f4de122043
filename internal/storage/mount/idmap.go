package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// holdCommand is a hidden argument of every binary with this package in it. A
// process started with it does nothing: it is there to own a user namespace until
// its parent has taken hold of that.
const holdCommand = "userns-hold"

// storedRoot is the owner that files of the host's root get in a tree with a guest's own ids.
const storedRoot = 1<<32 - 3

// The holder ends here, before main and whatever main would do with the argument.
func init() {
	if len(os.Args) == 2 && os.Args[1] == holdCommand {
		_, _ = io.Copy(io.Discard, os.Stdin) // until the parent closes its end, by intent or by dying
		os.Exit(0)
	}
}

// UserNamespace makes a user namespace in which the ids 0…Size-1 are those of the
// range, and returns a descriptor of it. A process is needed for that: Go cannot
// leave the user namespace in one of its threads, and the kernel wants the maps
// written from outside. So this binary is started again inside the new namespace
// and killed as soon as the namespace is open; it needs no other program.
//
// withRoot gives the host's root an id in there as well, one that nobody else has: what root makes through
// an id-mapped mount would otherwise have no owner to be stored, and cannot be made (EOVERFLOW).
func UserNamespace(ids storage.IDRange, withRoot bool) (*os.File, error) {
	stdin, keep, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	defer keep.Close() //nolint:errcheck // its end is the message
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(ids.Base), Size: int(ids.Size)}}
	if withRoot {
		maps = append(maps, syscall.SysProcIDMap{ContainerID: storedRoot, HostID: 0, Size: 1})
	}
	holder, err := os.StartProcess("/proc/self/exe", []string{"compute-agent", holdCommand}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{},
		Files: []*os.File{stdin, nil, nil},
		Sys: &syscall.SysProcAttr{
			Cloneflags:                 syscall.CLONE_NEWUSER,
			UidMappings:                maps,
			GidMappings:                maps,
			GidMappingsEnableSetgroups: true,
			Setpgid:                    true, // the terminal's signals are not for it
		},
	})
	_ = stdin.Close()
	if err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EUSERS) {
			return nil, fmt.Errorf("%w: a user namespace for ids %d+%d cannot be made: %w", storage.ErrUnsupported, ids.Base, ids.Size, err)
		}
		return nil, fmt.Errorf("make user namespace for ids %d+%d: %w", ids.Base, ids.Size, err)
	}
	ns, err := os.Open("/proc/" + strconv.Itoa(holder.Pid) + "/ns/user")
	killErr := holder.Kill()
	_, waitErr := holder.Wait()
	if err := errors.Join(err, killErr, waitErr); err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	return ns, nil
}

// CloneIDMapped mounts the directory source at target, with its ids mapped to the
// range (mount_setattr(2), MOUNT_ATTR_IDMAP), read-only unless writable. Mounts below
// source are not part of it.
func CloneIDMapped(source, target string, ids storage.IDRange, writable bool) error {
	ns, err := UserNamespace(ids, writable)
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // nothing was written
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("clone %s: %w", source, err)
	}
	defer unix.Close(tree) //nolint:errcheck // nothing was written
	return attachMapped(tree, ns, source, target, access(writable))
}

// ShareIDMapped mounts an open directory of the host, which others use, too, at target as CloneIDMapped does. Its device nodes and
// set-id bits mean nothing there. A guest in a user namespace of its own cannot take that off again, nor read-only
// (mount_namespaces(7), restrictions).
func ShareIDMapped(dir *os.File, target string, ids storage.IDRange, writable bool) error {
	ns, err := UserNamespace(ids, writable)
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // nothing was written
	tree, err := unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("clone %s: %w", dir.Name(), err)
	}
	defer unix.Close(tree) //nolint:errcheck // nothing was written
	return attachMapped(tree, ns, dir.Name(), target, access(writable)|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
}

// access is the attribute of a mount that is writable or not.
func access(writable bool) uint64 {
	if writable {
		return 0
	}
	return unix.MOUNT_ATTR_RDONLY
}

// AttachIDMapped mounts what Detached made at target, with its ids mapped to the range, writable.
func AttachIDMapped(fs *os.File, target string, ids storage.IDRange) error {
	ns, err := UserNamespace(ids, true)
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // nothing was written
	return attachMapped(int(fs.Fd()), ns, fs.Name(), target, 0)
}

// attachMapped gives a mount that is nowhere in the tree yet the ids of the namespace, attributes, and its place.
func attachMapped(tree int, ns *os.File, source, target string, attributes uint64) error {
	err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set:    attributes | unix.MOUNT_ATTR_IDMAP,
		Propagation: unix.MS_PRIVATE,
		Userns_fd:   uint64(ns.Fd()),
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%w: the file system of %s cannot be id-mapped on this kernel: %w", storage.ErrUnsupported, source, err)
	}
	if err != nil {
		return fmt.Errorf("map ids of %s: %w", source, err)
	}
	return attach(tree, target)
}

// Clone mounts the directory source at target, whatever the mount that it is on allows: writable, with devices and set-id programs.
func Clone(source, target string) error {
	return clone(source, target, &unix.MountAttr{
		Attr_clr:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
		Propagation: unix.MS_PRIVATE,
	})
}

// CloneLocked mounts the directory source read-only at target, without devices, set-id
// programs or any programs at all. A mount namespace that belongs to a guest's user namespace
// cannot take these flags off a copy of the mount (mount_namespaces(7), restrictions).
func CloneLocked(source, target string) error {
	return clone(source, target, &unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
		Propagation: unix.MS_PRIVATE,
	})
}

func clone(source, target string, attributes *unix.MountAttr) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("clone %s: %w", source, err)
	}
	defer unix.Close(tree) //nolint:errcheck // nothing was written
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attributes); err != nil {
		return fmt.Errorf("set attributes of a mount of %s: %w", source, err)
	}
	return attach(tree, target)
}
