package unsquash

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// confineCommand is a hidden argument of every binary with this package in it: the
// process gives up what it does not need and becomes unsquashfs.
const confineCommand = "unsquashfs-confined"

// exitConfine is an exit status that unsquashfs does not have.
const exitConfine = 97

// The confined process leaves here, before main. init runs on the main thread, so
// what is given up by a thread is given up by the program that it executes.
func init() {
	if len(os.Args) == 6 && os.Args[1] == confineCommand {
		err := become(os.Args[2], os.Args[3], os.Args[4], os.Args[5])
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitConfine)
	}
}

// become confines this process and executes unsquashfs in it; it returns only on failure.
func become(program, image, target, limit string) error {
	if os.Getpid() != 1 {
		return errors.New("not in a process namespace of its own")
	}
	if err := isolateMounts(target); err != nil {
		return err
	}
	largest, err := strconv.ParseUint(limit, 10, 63)
	if err != nil {
		return fmt.Errorf("read limit: %w", err)
	}
	for resource, value := range map[int]uint64{unix.RLIMIT_FSIZE: largest, unix.RLIMIT_AS: memory, unix.RLIMIT_CORE: 0} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: value, Max: value}); err != nil {
			return fmt.Errorf("set limit %d: %w", resource, err)
		}
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	// Small queues: the defaults take 256 MiB and two threads a processor.
	args := []string{program, "-force", "-quiet", "-no-progress", "-processors", "2", "-data-queue", "64", "-frag-queue", "64", "-dest", target, image}
	return fmt.Errorf("execute %s: %w", program, unix.Exec(program, args, os.Environ()))
}

// memory is the address space that unsquashfs may have.
const memory = 1 << 30

// isolateMounts makes everything read-only but target, and hides what is no plain file system.
func isolateMounts(target string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	writable, err := unix.OpenTree(unix.AT_FDCWD, target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone %s: %w", target, err)
	}
	defer unix.Close(writable) //nolint:errcheck // nothing was written
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run"} {
		if err := unix.Mount("none", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k"); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	all := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, all); err != nil {
		return fmt.Errorf("make mounts read-only: %w", err)
	}
	here := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(writable, "", unix.AT_EMPTY_PATH, here); err != nil {
		return fmt.Errorf("restrict %s: %w", target, err)
	}
	if err := unix.MoveMount(writable, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// keptCapabilities are what it takes to write owners, modes and file capabilities.
var keptCapabilities = []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETFCAP}

// dropCapabilities leaves the kept ones to this thread and to what it executes.
func dropCapabilities() error {
	var kept uint64
	for _, c := range keptCapabilities {
		kept |= 1 << c
	}
	for c := range uintptr(64) {
		if kept&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // beyond the kernel's last
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	low := uint32(kept) // all kept ones are below 32
	data := [2]unix.CapUserData{{Effective: low, Permitted: low, Inheritable: 0}}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}
