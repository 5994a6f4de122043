// Package hostshare gives servers directories of their host. The operator says which there are ([lxc] shares), an
// administrator which server sees them and where (the flavor's lxc:share:NAME); users and images have no say.
//
//	<dir>/<instance>/<share>   the directory, mounted with the instance's ids while its guest runs
//
// The guest's user n is the share's user n, in every guest that has it.
package hostshare

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// ErrUnavailable tells that this host does not have a share, or cannot give it to a guest; another host may.
var ErrUnavailable = errors.New("this host cannot share the directory")

// Share is a directory that servers may be given.
type Share struct {
	Name     string
	Path     string // absolute
	ReadOnly bool
}

// Store holds the mounts of this host's servers. Its methods may be repeated; those of one instance are
// serialised by the caller.
type Store struct {
	dir    string
	shares map[string]Share
}

// Open makes the directory of the mounts. Guests' roots must be able to pass through it.
func Open(dir string, shares []Share) (*Store, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // see above
		return nil, fmt.Errorf("make directory of shares: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // the umask takes bits away
		return nil, fmt.Errorf("make directory of shares: %w", err)
	}
	s := &Store{dir: dir, shares: make(map[string]Share, len(shares))}
	for _, share := range shares {
		s.shares[share.Name] = share
	}
	return s, nil
}

// Path is where a share is mounted for an instance while its guest runs.
func (s *Store) Path(instanceID, name string) string { return filepath.Join(s.dir, instanceID, name) }

// Check tells whether this host has all of the shares: ErrUnavailable says which it has not.
func (s *Store) Check(names []string) error {
	for _, name := range names {
		dir, _, err := s.open(name)
		if err != nil {
			return err
		}
		_ = dir.Close()
	}
	return nil
}

// Find tells whether a share's directory is there: ErrUnavailable says why not.
func Find(share Share) error {
	dir, err := open(share)
	if err != nil {
		return err
	}
	return dir.Close()
}

// Mount mounts shares for an instance whose guest is about to start, with its ids. What is mounted already stays.
// ErrUnavailable tells that this host does not have one of them.
func (s *Store) Mount(instanceID string, ids storage.IDRange, names []string) error {
	if err := storage.CheckID(instanceID); err != nil {
		return err
	}
	if len(names) == 0 {
		return nil
	}
	if err := mount.Point(filepath.Join(s.dir, instanceID)); err != nil {
		return err
	}
	for _, name := range names {
		if err := s.mount(instanceID, ids, name); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) mount(instanceID string, ids storage.IDRange, name string) error {
	dir, share, err := s.open(name)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // only a name
	point := s.Path(instanceID, name)
	mounted, err := mount.Is(point)
	if err != nil || mounted {
		return err
	}
	if err := mount.Point(point); err != nil {
		return err
	}
	err = mount.ShareIDMapped(dir, point, ids, !share.ReadOnly)
	if errors.Is(err, storage.ErrUnsupported) {
		return fmt.Errorf("%w: share %s: %w", ErrUnavailable, name, err)
	}
	if err != nil {
		return fmt.Errorf("mount share %s: %w", name, err)
	}
	return nil
}

func (s *Store) open(name string) (*os.File, Share, error) {
	share, ok := s.shares[name]
	if !ok {
		return nil, Share{}, fmt.Errorf("%w: [lxc] shares has none named %s", ErrUnavailable, name)
	}
	dir, err := open(share)
	return dir, share, err
}

// open finds a share's directory. No symbolic link may lead there: where the path goes through another share, a guest
// could have made it, and would choose what the next one gets.
func open(share Share) (*os.File, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, share.Path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ELOOP) {
		err = errors.New("a symbolic link is on the way there")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: share %s: %s: %w", ErrUnavailable, share.Name, share.Path, err)
	}
	return os.NewFile(uintptr(fd), share.Path), nil
}

// Unmount takes the mounts of an instance away, whose guest is off. One that is still in use goes with its last user.
func (s *Store) Unmount(instanceID string) error {
	if err := storage.CheckID(instanceID); err != nil {
		return err
	}
	points, err := os.ReadDir(filepath.Join(s.dir, instanceID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmount shares: %w", err)
	}
	for _, p := range points {
		if err := mount.Detach(s.Path(instanceID, p.Name())); err != nil { // the file system is the host's: there is nothing to write back
			return fmt.Errorf("unmount shares: %w", err)
		}
	}
	return nil
}

// Remove takes away all that there is of an instance's shares, but nothing that is in them.
func (s *Store) Remove(instanceID string) error {
	if err := s.Unmount(instanceID); err != nil {
		return err
	}
	dir := filepath.Join(s.dir, instanceID)
	points, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// One by one, as empty directories: a mount that came back would not be emptied.
	for _, p := range points {
		err = errors.Join(err, unix.Rmdir(filepath.Join(dir, p.Name())))
	}
	if err == nil {
		err = unix.Rmdir(dir)
	}
	if err != nil {
		return fmt.Errorf("remove shares: %w", err)
	}
	return nil
}
