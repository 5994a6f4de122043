package template

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/fdio"
)

// root is a guest's root file system.
type root struct {
	fd     int
	base   int // what is added to a guest's id
	number uint32
}

// inRoot resolves names as the guest does, and no further than one file system:
// nothing is mounted in it while the guest is down.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

func openRoot(path string, base, number uint32) (*root, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	r := &root{fd: fd, number: number}
	if st.Uid >= base && st.Uid-base < number {
		r.base = int(base)
	}
	return r, nil
}

func (r *root) close() { _ = unix.Close(r.fd) }

// write brings the text into the file at path. A file that is there keeps its owner
// and mode unless the rule says otherwise; a missing one, and missing directories
// above it, are root's.
func (r *root) write(path, text string, how rule) error {
	name := strings.TrimLeft(path, "/")
	if name == "" || strings.HasSuffix(name, "/") {
		return errors.New("is not the name of a file")
	}
	file, err := openRegular(r.fd, name, unix.O_RDWR, inRoot)
	if err == nil {
		defer file.Close() //nolint:errcheck // writes are not buffered
		if how.createOnly {
			return nil
		}
		return r.fill(file, text, how, false)
	}
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := r.makeParents(name); err != nil {
		return err
	}
	fd, err := openat2(r.fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_NONBLOCK|unix.O_NOCTTY, 0o600, inRoot)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	file = os.NewFile(uintptr(fd), path)
	defer file.Close() //nolint:errcheck // writes are not buffered
	return r.fill(file, text, how, true)
}

// fill replaces the content. What is there is cut off last, so that a full disk leaves
// no empty file behind.
func (r *root) fill(file *os.File, text string, how rule, made bool) error {
	have, err := io.ReadAll(io.LimitReader(file, maxText+1))
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if made || !bytes.Equal(have, []byte(text)) {
		if _, err := file.WriteAt([]byte(text), 0); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if err := file.Truncate(int64(len(text))); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	if made && how.mode == noMode {
		how.mode = 0o644
	}
	uid, err := r.shifted(how.uid, made)
	if err != nil {
		return err
	}
	gid, err := r.shifted(how.gid, made)
	if err != nil {
		return err
	}
	fd := int(file.Fd())
	if uid >= 0 || gid >= 0 {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if how.mode != noMode { // after the owner, whose change takes setuid away
		if err := unix.Fchmod(fd, how.mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	return nil
}

// shifted is the host's id for a guest's; -1 leaves it as it is.
func (r *root) shifted(id int64, made bool) (int, error) {
	if id < 0 {
		if !made {
			return -1, nil
		}
		id = 0
	}
	if id >= int64(r.number) {
		return 0, fmt.Errorf("owner %d is beyond the guest's %d ids", id, r.number)
	}
	return r.base + int(id), nil
}

// makeParents makes the directories above name that are missing.
func (r *root) makeParents(name string) error {
	parts := strings.Split(name, "/")
	at := ""
	for _, part := range parts[:len(parts)-1] {
		if part == "" || part == "." {
			continue
		}
		parent := at
		at = strings.TrimPrefix(at+"/"+part, "/")
		fd, err := openat2(r.fd, at, unix.O_PATH|unix.O_DIRECTORY, 0, inRoot)
		if err == nil {
			_ = unix.Close(fd)
			continue
		}
		if !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("open directory %q: %w", at, err)
		}
		if err := r.makeDir(parent, part); err != nil {
			return fmt.Errorf("make directory %q: %w", at, err)
		}
	}
	return nil
}

func (r *root) makeDir(parent, name string) error {
	if parent == "" {
		parent = "."
	}
	fd, err := openat2(r.fd, parent, unix.O_PATH|unix.O_DIRECTORY, 0, inRoot)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // only a name
	if err := unix.Mkdirat(fd, name, 0o755); err != nil {
		return err // EEXIST: a link that leads nowhere
	}
	made, err := openat2(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return err
	}
	defer unix.Close(made) //nolint:errcheck // only attributes were set
	if err := unix.Fchown(made, r.base, r.base); err != nil {
		return err
	}
	return unix.Fchmod(made, 0o755) // whatever the agent's umask
}

var errNotRegular = errors.New("is not a regular file")

// openRegular opens an existing regular file. Others are only looked at: opening a
// fifo waits, opening a device acts.
func openRegular(at int, name string, flags int, resolve uint64) (*os.File, error) {
	fd, err := openat2(at, name, unix.O_PATH, 0, resolve)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) //nolint:errcheck // only a name
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errNotRegular
	}
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), flags, 0)
}

func openat2(at int, name string, flags int, mode uint64, resolve uint64) (int, error) {
	how := &unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Mode: mode, Resolve: resolve} //nolint:gosec // flags are positive
	return fdio.Openat2(at, name, how)
}
