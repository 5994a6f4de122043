// Package guestfile reads and writes files of a guest, or of its root disk before it runs, by the names that they have there. The guest is hostile
// and may change any name at any time, and so is the image that a disk is made of: names are resolved beneath its root directory and nowhere else, links included; only regular files are opened, and only on file
// systems that are made for files, since what is behind a name in /proc or /sys is the host's. What is made belongs to ids of the guest's.
package guestfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/fdio"
)

// Errors that callers may test, besides those of io/fs.
var (
	// ErrFileSystem: the name is in /proc, /sys or the like.
	ErrFileSystem = errors.New("the file system there is not one for files")
	// ErrNotRegular: the name is a device, a pipe, a socket or a directory.
	ErrNotRegular = errors.New("it is not a regular file")
)

// IDs is where the guest's ids are on the host: its root is Base.
type IDs struct{ Base, Count uint32 }

// Root is the root directory of a guest. Its methods may be called at the same time.
type Root struct {
	dir *os.File
	ids IDs

	once   sync.Once
	work   chan task
	worker sync.WaitGroup
}

// New takes over the root directory as driver.RootOpener opens it. Close has to be called.
func New(dir *os.File, ids IDs) *Root { return &Root{dir: dir, ids: ids, work: make(chan task)} }

// OpenDisk opens the root directory of a guest that does not run, at the path where its disk is mounted. A disk whose root is none of ids
// is one that the guest gets as it is, or that is mapped when the guest starts: its files have the guest's own numbers.
func OpenDisk(path string, ids IDs) (*Root, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	dir := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("look at %s: %w", path, err), dir.Close())
	}
	if st.Uid < ids.Base || st.Uid-ids.Base >= ids.Count {
		ids.Base = 0
	}
	return New(dir, ids), nil
}

// Close lets go of the guest. No other method may be under way.
func (r *Root) Close() error {
	close(r.work)
	r.worker.Wait()
	return r.dir.Close()
}

// Info is what a guest's file is.
type Info struct {
	Mode fs.FileMode
	Size int64
}

// clean makes a name one below the root.
func clean(name string) string {
	if name = strings.TrimPrefix(path.Clean("/"+name), "/"); name != "" {
		return name
	}
	return "."
}

// Stat tells what a name leads to. Links are followed as the guest would.
func (r *Root) Stat(name string) (Info, error) {
	f, st, err := r.find(name)
	if err != nil {
		return Info{}, err
	}
	return describe(st), f.Close()
}

// Open opens a regular file to read.
func (r *Root) Open(name string) (*os.File, Info, error) {
	f, st, err := r.find(name)
	if err != nil {
		return nil, Info{}, err
	}
	defer f.Close() //nolint:errcheck // only a path
	opened, err := open(f, st)
	return opened, describe(st), wrap("open", name, err)
}

// find opens a name as a path.
func (r *Root) find(name string) (*os.File, unix.Stat_t, error) {
	f, err := openat2(r.dir, clean(name), unix.O_PATH, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return nil, unix.Stat_t{}, wrap("open", name, err)
	}
	st, err := look(f)
	if err != nil {
		_ = f.Close()
		return nil, st, wrap("look at", name, err)
	}
	return f, st, nil
}

func wrap(doing, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %q of the guest: %w", doing, "/"+strings.TrimPrefix(clean(name), "."), err)
}

// look tells what an open path is, if it is on a file system for files.
func look(f *os.File) (st unix.Stat_t, err error) {
	var system unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &system); err != nil {
		return st, err
	}
	if !slices.Contains(fileSystems, uint64(system.Type)) { //nolint:gosec // a magic number
		return st, ErrFileSystem
	}
	return st, unix.Fstat(int(f.Fd()), &st)
}

// fileSystems are those that have nothing of the host's in them but what the guest was given. FUSE is not one: its server may be the guest's
// and never answer.
var fileSystems = []uint64{
	unix.EXT4_SUPER_MAGIC, // ext2 and ext3, too
	unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.OVERLAYFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.SQUASHFS_MAGIC,
	0x2fc12fc1, // ZFS
	0xf2f52010, // F2FS
}

// open opens a regular file that was found as a path: a pipe or a device would make an event of it.
func open(f *os.File, st unix.Stat_t) (*os.File, error) {
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, ErrNotRegular
	}
	return os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}

func openat2(dir *os.File, name string, flags int, resolve uint64) (*os.File, error) {
	fd, err := fdio.Openat2(int(dir.Fd()), name, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}) //nolint:gosec // flags are not negative
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func describe(st unix.Stat_t) Info {
	mode := fs.FileMode(st.Mode & 0o777)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFREG:
	default:
		mode |= fs.ModeIrregular
	}
	return Info{Mode: mode, Size: st.Size}
}

// task is a part of the work that is done as the guest's root.
type task struct {
	do   func() error
	done chan<- error
}

// asGuest calls do on a thread that is the guest's root to file systems, so that what it makes is the guest's on mounts of mapped ids, too.
// As to permissions it is the host's root.
func (r *Root) asGuest(do func() error) error {
	r.once.Do(func() {
		r.worker.Go(func() {
			runtime.LockOSThread() // for good: the thread ends with the goroutine
			err := become(int(r.ids.Base))
			for t := range r.work {
				if err != nil {
					t.done <- err
					continue
				}
				t.done <- t.do()
			}
		})
	})
	done := make(chan error, 1)
	r.work <- task{do, done}
	return <-done
}

// become makes this thread a user to file systems. The kernel takes some capabilities away with that (capabilities(7)), which are taken back.
func become(id int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3} // of this thread
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	_, gidErr := unix.SetfsgidRetGid(id)
	_, uidErr := unix.SetfsuidRetUid(id)
	gid, _ := unix.SetfsgidRetGid(-1) // changes nothing, and tells what it is
	uid, _ := unix.SetfsuidRetUid(-1)
	if err := errors.Join(gidErr, uidErr); err != nil || gid != id || uid != id {
		return fmt.Errorf("become the guest's root (%d): it is %d:%d: %w", id, uid, gid, errors.Join(err, unix.EPERM))
	}
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	return nil
}
