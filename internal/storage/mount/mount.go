// Package mount wraps the kernel's mount calls: what is mounted where, unmounting
// with a deadline, overlays, and id-mapped clones of a directory; and what there is to ask of a file system that
// is mounted, whatever its type.
package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// firstPause and longestPause bound the pause between attempts to unmount what is busy.
const (
	firstPause   = 5 * time.Millisecond
	longestPause = 200 * time.Millisecond
)

// Is tells whether a mount begins at path. A path that does not exist is no mount.
func Is(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if errors.Is(err, unix.EIO) { // a file system that was shut down may tell nothing any more; XFS does not
		return listed(path)
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// listed tells whether the kernel's table of mounts has one at path (proc_pid_mountinfo(5)).
func listed(path string) (bool, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, fmt.Errorf("look for mounts: %w", err)
	}
	// Blanks and the like are written as octal numbers.
	escaped := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(path)
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == escaped {
			return true, nil
		}
	}
	return false, nil
}

// Unmount unmounts everything that is mounted at path, and waits for users to
// leave and for data to be written until ctx ends: then storage.ErrBusy. What is
// not mounted is unmounted already. An empty mount point is made anew, see renew.
func Unmount(ctx context.Context, path string) error { return unmount(ctx, path, false) }

// Leave unmounts as Unmount does, but returns as soon as the mount is out of the tree: the kernel
// drops what it remembers of the files meanwhile, which takes seconds where there are many.
func Leave(ctx context.Context, path string) error { return unmount(ctx, path, true) }

func unmount(ctx context.Context, path string, early bool) error {
	for pause, found := firstPause, false; ; {
		mounted, err := Is(path)
		if err != nil {
			return err
		}
		if !mounted {
			return renew(path, found)
		}
		found = true
		// The kernel writes back all dirty data here, in a call that nothing interrupts.
		err = await(ctx, path, early, func() error { return unix.Unmount(path, unix.UMOUNT_NOFOLLOW) })
		switch {
		case err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT): // look again: mounts stack
			continue
		case ctx.Err() != nil:
			return fmt.Errorf("unmount %s: %w: %w", path, storage.ErrBusy, context.Cause(ctx))
		case !errors.Is(err, unix.EBUSY):
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("unmount %s: %w: %w", path, storage.ErrBusy, context.Cause(ctx))
		}
		pause = min(2*pause, longestPause)
	}
}

// Detach takes the mounts at path out of the tree at once; the file system itself
// goes when its last user does. An empty mount point is made anew, see renew.
func Detach(path string) error {
	for found := false; ; found = true {
		mounted, err := Is(path)
		if err != nil {
			return err
		}
		if !mounted {
			return renew(path, found)
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("detach %s: %w", path, err)
		}
	}
}

// renew replaces a mount point that was in use. Other mount namespaces, of any
// service started meanwhile, may have copies of the mount, which would keep the
// file system and its loop device; the kernel drops those copies when the
// directory itself goes (fs/namespace.c:__detach_mounts).
func renew(path string, used bool) error {
	if !used {
		return nil
	}
	if err := unix.Rmdir(path); err != nil {
		return nil //nolint:nilerr // not empty, so a directory with another use; or gone
	}
	return Point(path)
}

// Point makes a directory to mount at, which others may pass through; one that exists will do.
func Point(path string) error {
	err := os.Mkdir(path, 0o711) //nolint:gosec // see the comment
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(path, 0o711) //nolint:gosec // the umask takes bits away
	}
	if err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	return nil
}

// leavePause is how often Leave looks whether a mount has gone.
const leavePause = 2 * time.Millisecond

// await runs an unmounting that cannot be interrupted and stops waiting for it when ctx ends, or early, when
// nothing is mounted at path any more.
func await(ctx context.Context, path string, early bool, call func() error) error {
	done := make(chan error, 1) // the call may end after nobody waits
	go func() { done <- call() }()
	var look <-chan time.Time
	if early {
		ticker := time.NewTicker(leavePause)
		defer ticker.Stop()
		look = ticker.C
	}
	for {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-look:
			if mounted, err := Is(path); err == nil && !mounted {
				return nil
			}
		}
	}
}

// Option is one parameter of a file system; an empty value is a flag.
type Option struct{ Key, Value string }

// New mounts a file system of type fstype at target.
func New(fstype, target string, options ...Option) error {
	fd, err := Detached(fstype, options...)
	if err != nil {
		return err
	}
	defer fd.Close() //nolint:errcheck // nothing was written
	return attach(int(fd.Fd()), target)
}

// Detached makes a mount that is nowhere in the tree; it goes with the file.
func Detached(fstype string, options ...Option) (*os.File, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		if errors.Is(err, unix.ENODEV) {
			return nil, fmt.Errorf("%w: the kernel has no file system %s", storage.ErrUnsupported, fstype)
		}
		return nil, fmt.Errorf("open file system %s: %w", fstype, err)
	}
	defer unix.Close(fs) //nolint:errcheck // nothing was written
	for _, o := range options {
		if o.Value == "" {
			err = unix.FsconfigSetFlag(fs, o.Key)
		} else {
			err = unix.FsconfigSetString(fs, o.Key, o.Value)
		}
		if err != nil {
			return nil, fmt.Errorf("set %s of %s: %w%s", o.Key, fstype, err, reasons(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make file system %s: %w%s", fstype, err, reasons(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount file system %s: %w%s", fstype, err, reasons(fs))
	}
	return os.NewFile(uintptr(fd), fstype), nil
}

// reasons reads what the kernel has to say about a failure (Documentation/filesystems/mount_api.rst).
func reasons(fs int) string {
	var lines []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			break
		}
		lines = append(lines, strings.TrimSpace(strings.TrimLeft(string(buf[:n]), "ewi ")))
	}
	if len(lines) == 0 {
		return ""
	}
	return " (" + strings.Join(lines, "; ") + ")"
}

func attach(fd int, target string) error {
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount at %s: %w", target, err)
	}
	return nil
}
