package lxc

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
)

// onOwnThread runs do on a thread that ends with it, whatever do has made of the thread. It is never the process' first: that one
// outlives its goroutines, and /proc/self shows its namespaces as the process'.
func onOwnThread(do func() error) <-chan error {
	done := make(chan error, 1) // nobody may wait for it any more
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- <-onOwnThread(do) // nothing else runs on this thread meanwhile
			return
		}
		done <- do() // without UnlockOSThread the thread ends with the goroutine
	}()
	return done
}

// giveLXCFS mounts files of lxcfs in a guest and adds to given how many. The thread is in the guest's mount namespace afterwards.
//
// The copies are made in the host's namespace, where lxcfs is, and put into the guest's, in which alone they can be
// mounted (fs/namespace.c:do_move_mount). The guest's user namespace is not entered: the host's root may mount in those
// below its own.
func (d *Driver) giveLXCFS(rec record, initPID int, work []lxcfsWork, given *atomic.Int32) error {
	p, err := openProcess(initPID, func() bool { return inGroup(initPID, payload(rec.Spec.Name)) })
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.close()
	if slices.Contains(sharedNamespaces(initPID, rec.Spec.Limits.Privileged), "mnt") {
		return errors.New("the guest is in the host's mount namespace")
	}
	root, err := unix.Open(procFile(initPID, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the guest's root: %w", err)
	}
	defer unix.Close(root) //nolint:errcheck // nothing was written
	if p.exited() {        // the number may be another process's by now
		return driver.ErrNotRunning
	}
	copies := make([]int, len(work))
	for i, w := range work {
		if copies[i], err = cloneFile(filepath.Join(d.o.LXCFSMount, w.file)); err != nil {
			return err
		}
		if copies[i] >= 0 {
			defer unix.Close(copies[i]) //nolint:errcheck // nothing was written
		}
	}
	// A thread that shares its working directory with others cannot change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the process's directory: %w", err)
	}
	if err := unix.Setns(p.fd, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the guest's mount namespace: %w", err)
	}
	var errs []error
	for i, w := range work {
		placed, err := place(root, w, copies[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("mount %s of lxcfs in the guest: %w", w.file, err))
		}
		if placed {
			given.Add(1)
		}
	}
	return errors.Join(errs...)
}

// cloneFile copies the mount of one file; -1: there is no such file.
func cloneFile(file string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, file, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return -1, nil // not in this version of lxcfs
	}
	if err != nil {
		return -1, fmt.Errorf("clone mount of %s: %w", file, err)
	}
	return fd, nil
}

// kernelFiles are the file systems over whose files lxcfs' may be mounted, by the first part of the path.
var kernelFiles = map[string]int64{"proc": unix.PROC_SUPER_MAGIC, "sys": unix.SYSFS_MAGIC}

// place puts a file where the dead mounts of it were. The names are the guest's to give, links and mounts among
// them: none is followed, and the directory has to be the kernel's own. A guest without it, or without the
// file, wants none: false.
func place(root int, w lxcfsWork, file int) (bool, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	dir, err := unix.Openat2(root, path.Dir(w.file), how)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(dir) //nolint:errcheck // nothing was written
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil {
		return false, err
	}
	first, _, _ := strings.Cut(w.file, "/")
	if int64(fs.Type) != kernelFiles[first] { //nolint:unconvert // 32 bits on some architectures
		return false, nil
	}
	// umount2(2) takes no descriptor of a directory; the thread's working directory is its own.
	if err := unix.Fchdir(dir); err != nil {
		return false, err
	}
	name := path.Base(w.file)
	for range w.dead {
		// EINVAL: it has gone, or the guest may not unmount it; then it is covered.
		if err := unix.Unmount(name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return false, err
		}
	}
	if file < 0 {
		return false, nil
	}
	err = unix.MoveMount(file, "", dir, name, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}
