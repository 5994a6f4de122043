package configdrive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// Names inside a drive's directory.
const (
	treeDir  = "tree"  // the documents
	mountDir = "mount" // where they are mounted read-only
)

// Store keeps the drives of this host, one directory per instance. Its methods may be repeated, and
// those of one instance are serialised by the caller.
type Store struct{ dir string }

// Open makes the directory. Guests' roots must be able to pass through it.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // see above
		return nil, fmt.Errorf("make directory of config drives: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // the umask takes bits away
		return nil, fmt.Errorf("make directory of config drives: %w", err)
	}
	return &Store{dir: dir}, nil
}

func (s *Store) at(uuid, name string) string { return filepath.Join(s.dir, uuid, name) }

// Path is where an instance's drive is mounted while it runs, whether it has one or not.
func (s *Store) Path(uuid string) string { return s.at(uuid, mountDir) }

// Write makes an instance's drive anew. Only the guest's root, id owner of the host, can read it:
// it may hold the password of the server. A drive in use must have been unmounted.
func (s *Store) Write(ctx context.Context, uuid string, owner uint32, documents []Document) error {
	if err := s.Remove(ctx, uuid); err != nil {
		return err
	}
	if err := s.write(uuid, int(owner), documents); err != nil {
		return errors.Join(fmt.Errorf("write config drive: %w", err), s.Remove(ctx, uuid))
	}
	return nil
}

func (s *Store) write(uuid string, owner int, documents []Document) error {
	if err := mount.Point(filepath.Join(s.dir, uuid)); err != nil {
		return err
	}
	if err := mount.Point(s.at(uuid, mountDir)); err != nil {
		return err
	}
	// Under another name until it is whole: a half-written drive is none.
	draft := s.at(uuid, treeDir+".new")
	if err := os.Mkdir(draft, 0o500); err != nil {
		return err
	}
	root, err := os.OpenRoot(draft)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing was written to it
	for _, d := range documents {
		if err := add(root, d, owner); err != nil {
			return err
		}
	}
	if err := root.Lchown(".", owner, owner); err != nil {
		return err
	}
	return os.Rename(draft, s.at(uuid, treeDir))
}

// add writes one document and the directories above it.
func add(root *os.Root, d Document, owner int) error {
	parts := strings.Split(d.Path, "/")
	for i := 1; i < len(parts); i++ {
		dir := filepath.Join(parts[:i]...)
		err := root.Mkdir(dir, 0o500)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := root.Lchown(dir, owner, owner); err != nil {
			return err
		}
	}
	f, err := root.OpenFile(filepath.Join(parts...), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400)
	if err != nil {
		return err
	}
	_, err = f.Write(d.Data)
	return errors.Join(err, f.Chown(owner, owner), f.Close())
}

// Mount mounts an instance's drive at Path, if it has one. The mount is read-only on the host's
// side: a guest that is given it can then not make it writable, whatever its root does.
func (s *Store) Mount(uuid string) error {
	if _, err := os.Lstat(s.at(uuid, treeDir)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("look at config drive: %w", err)
	}
	mounted, err := mount.Is(s.Path(uuid))
	if err != nil || mounted {
		return err
	}
	if err := mount.CloneLocked(s.at(uuid, treeDir), s.Path(uuid)); err != nil {
		return fmt.Errorf("mount config drive: %w", err)
	}
	return nil
}

// Unmount takes the host's mount away; a drive that is not mounted is fine.
func (s *Store) Unmount(ctx context.Context, uuid string) error {
	if err := mount.Unmount(ctx, s.Path(uuid)); err != nil && !errors.Is(err, storage.ErrBusy) {
		return fmt.Errorf("unmount config drive: %w", err)
	} else if err != nil {
		return mount.Detach(s.Path(uuid))
	}
	return nil
}

// Remove deletes an instance's drive; one that does not exist is fine.
func (s *Store) Remove(ctx context.Context, uuid string) error {
	if uuid == "" || strings.ContainsAny(uuid, "/.") {
		return fmt.Errorf("remove config drive: %q is no instance", uuid)
	}
	if err := s.Unmount(ctx, uuid); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(s.dir, uuid)); err != nil {
		return fmt.Errorf("remove config drive: %w", err)
	}
	return nil
}

// Exists tells whether an instance has a drive.
func (s *Store) Exists(uuid string) bool {
	return unix.Access(s.at(uuid, treeDir), unix.F_OK) == nil
}
