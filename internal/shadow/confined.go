package shadow

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/fdio"
)

const (
	// maxFile bounds the files that are read: a host with 10,000 accounts has less than 1 MiB.
	maxFile = 4 << 20
	// maxLinks bounds a chain of links.
	maxLinks = 8
	// lockPoll is how often a lock that somebody holds is tried again.
	lockPoll = 50 * time.Millisecond
)

// place is a file by the directory that holds it: names are looked up in no other way, so
// that what the guest moves meanwhile cannot lead elsewhere.
type place struct {
	dir  *os.File // O_PATH
	name string
}

func (p place) close() { _ = p.dir.Close() }

// locate follows links inside root to the directory of a file, which need not exist.
func locate(root *os.File, file string) (place, error) {
	for range maxLinks {
		fd, err := openat2(root, path.Dir(file), unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
		if err != nil {
			return place{}, fmt.Errorf("open /%s of the guest: %w", path.Dir(file), err)
		}
		p := place{dir: fd, name: path.Base(file)}
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(fd.Fd()), p.name, target)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return p, nil
		}
		p.close()
		if err != nil {
			return place{}, fmt.Errorf("read link /%s of the guest: %w", file, err)
		}
		to := string(target[:n])
		if !strings.HasPrefix(to, "/") {
			to = path.Dir(file) + "/" + to // ".." is the kernel's to resolve: a directory may be a link
		}
		file = strings.TrimLeft(to, "/")
	}
	return place{}, fmt.Errorf("open /%s of the guest: %w", file, unix.ELOOP)
}

func openat2(dir *os.File, name string, flags int, resolve uint64) (*os.File, error) {
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve} //nolint:gosec // flags are not negative
	fd, err := fdio.Openat2(int(dir.Fd()), name, how)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// open opens a regular file and nothing else: it is looked at before it is opened, which for a pipe or
// a device would be an event of its own.
func (p place) open(flags int) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	f, err := openat2(p.dir, p.name, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH)
	if err != nil {
		return nil, st, err
	}
	defer f.Close() //nolint:errcheck // only a path
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, st, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, st, fmt.Errorf("it is not a regular file (mode %o)", st.Mode)
	}
	opened, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), flags|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	return opened, st, err
}

// read returns a file's content and its status.
func (p place) read() (string, unix.Stat_t, error) {
	f, st, err := p.open(os.O_RDONLY)
	if err != nil {
		return "", st, fmt.Errorf("open %s of the guest: %w", p.name, err)
	}
	defer f.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", st, fmt.Errorf("read %s of the guest: %w", p.name, err)
	}
	if len(b) > maxFile {
		return "", st, fmt.Errorf("read %s of the guest: it is larger than %d bytes", p.name, maxFile)
	}
	return string(b), st, nil
}

// replace puts a file with the same owner, mode and extended attributes in the place of one, in one step.
func (p place) replace(content string, old unix.Stat_t) (err error) {
	from, _, err := p.open(os.O_RDONLY)
	if err != nil {
		return fmt.Errorf("open %s of the guest: %w", p.name, err)
	}
	defer from.Close() //nolint:errcheck // only read
	temporary := fmt.Sprintf(".%s.%s", p.name, rand.Text())
	f, err := p.create(temporary, old.Uid, old.Gid)
	if err != nil {
		return fmt.Errorf("make a file in the guest: %w", err)
	}
	defer f.Close() //nolint:errcheck // synchronised below
	defer func() {
		if err != nil {
			_ = unix.Unlinkat(int(p.dir.Fd()), temporary, 0)
		}
	}()
	if _, err := f.WriteString(content); err != nil {
		return fmt.Errorf("write %s of the guest: %w", p.name, err)
	}
	if err := f.Chown(int(old.Uid), int(old.Gid)); err != nil {
		return fmt.Errorf("set owner of %s of the guest: %w", p.name, err)
	}
	if err := unix.Fchmod(int(f.Fd()), old.Mode&0o7777); err != nil {
		return fmt.Errorf("set mode of %s of the guest: %w", p.name, err)
	}
	if err := copyAttributes(from, f); err != nil {
		return fmt.Errorf("copy attributes of %s of the guest: %w", p.name, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write %s of the guest: %w", p.name, err)
	}
	if err := unix.Renameat(int(p.dir.Fd()), temporary, int(p.dir.Fd()), p.name); err != nil {
		return fmt.Errorf("replace %s of the guest: %w", p.name, err)
	}
	return nil
}

// create makes a file as the owner that it shall have: on a file system whose ids are shifted, the
// host's root is nobody and may not own a file.
func (p place) create(name string, uid, gid uint32) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result, 1)
	go func() {
		// The thread's file system ids are never set back: without UnlockOSThread it ends with the goroutine.
		runtime.LockOSThread()
		var r result
		_, gidErr := unix.SetfsgidRetGid(int(gid))
		_, uidErr := unix.SetfsuidRetUid(int(uid))
		if r.err = errors.Join(gidErr, uidErr); r.err == nil {
			how := &unix.OpenHow{
				Flags: unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC, Mode: 0o600, Resolve: unix.RESOLVE_BENEATH,
			}
			var fd int
			if fd, r.err = unix.Openat2(int(p.dir.Fd()), name, how); r.err == nil {
				r.f = os.NewFile(uintptr(fd), name)
			}
		}
		done <- r
	}()
	r := <-done
	return r.f, r.err
}

// copyAttributes copies what belongs to a file besides its content: its SELinux label, its ACL. What
// is the kernel's own (trusted.overlay.…) stays behind.
func copyAttributes(from, to *os.File) error {
	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Flistxattr(int(from.Fd()), names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.") {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Fgetxattr(int(from.Fd()), name, value)
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// lock takes the lock of the guest's account files, as lckpwdf(3) does, until the returned function is called.
func lock(ctx context.Context, etc *os.File, owner unix.Stat_t) (unlock func(), err error) {
	p := place{dir: etc, name: ".pwd.lock"}
	f, _, err := p.open(os.O_WRONLY)
	if errors.Is(err, unix.ENOENT) {
		f, err = p.create(p.name, owner.Uid, owner.Gid)
	}
	if err != nil {
		return nil, fmt.Errorf("open the lock of the guest's accounts: %w", err)
	}
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if err == nil {
			return func() {
				// Of its own: a program that is about to be started has the descriptor, too, until it runs.
				_ = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
				_ = f.Close()
			}, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			_ = f.Close()
			return nil, fmt.Errorf("lock the guest's accounts: %w", err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("lock the guest's accounts: %w", ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}
