// Package pool keeps the directory of root disks of one back end: a directory and
// a record per instance, made and taken away by one rename each.
//
//	<dir>/<instance>/root.json   what Create was asked for
//	<dir>/.new/<instance>        being made; wiped when the pool is opened
//	<dir>/.trash/                to be removed in the background
//
// Directories have mode 0711: the guest's root, an ordinary user of the host, must
// be able to pass through them to its root file system, and nobody can list them.
package pool

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
)

const (
	newDir   = ".new"
	trashDir = ".trash"
	record   = "root.json"
	// retryInterval is the pause before removing again what could not be removed.
	retryInterval = time.Minute
)

// Pool is an open directory. Its methods may be called concurrently for different instances.
type Pool struct {
	dir     string
	release func(dir string) error // detaches whatever is mounted in an instance's directory
	nudge   chan struct{}          // capacity 1: there is work for Run

	mu    sync.Mutex
	fresh []string // instances whose directories are not known to be on disk; guarded by mu
}

// Open opens or makes the directory, which must not have ':', ',' or '\' in its
// path because overlayfs gives them a meaning, and wipes what a crash left half made.
// release must detach whatever the back end mounts in an instance's directory.
func Open(dir string, release func(dir string) error) (*Pool, error) {
	if !filepath.IsAbs(dir) || strings.ContainsAny(dir, `:,\`) {
		return nil, fmt.Errorf("open root disks: %q is not an absolute path without ':', ',' and '\\'", dir)
	}
	p := &Pool{dir: filepath.Clean(dir), release: release, nudge: make(chan struct{}, 1)}
	for _, d := range []string{p.dir, p.path(newDir), p.path(trashDir)} {
		if err := os.MkdirAll(d, 0o711); err != nil { //nolint:gosec // see the package comment
			return nil, fmt.Errorf("open root disks: %w", err)
		}
		if err := os.Chmod(d, 0o711); err != nil { //nolint:gosec // see the package comment
			return nil, fmt.Errorf("open root disks: %w", err)
		}
	}
	if err := checkPassable(filepath.Dir(p.dir)); err != nil {
		return nil, fmt.Errorf("open root disks: %w", err)
	}
	half, err := os.ReadDir(p.path(newDir))
	if err != nil {
		return nil, fmt.Errorf("open root disks: %w", err)
	}
	for _, e := range half {
		half := p.path(newDir, e.Name())
		if err := errors.Join(p.release(half), p.trash(half)); err != nil {
			return nil, fmt.Errorf("open root disks: %w", err)
		}
	}
	p.wake()
	return p, nil
}

// checkPassable looks for a parent through which the guests' roots cannot pass.
func checkPassable(dir string) error {
	for {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode().Perm()&1 == 0 {
			return fmt.Errorf("directory %s has mode %04o, guests cannot pass through it: it needs x for others", dir, info.Mode().Perm())
		}
		if dir == "/" {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

// Path gives a path in an instance's directory.
func (p *Pool) Path(instanceID string, elem ...string) string {
	return p.path(append([]string{instanceID}, elem...)...)
}

func (p *Pool) path(elem ...string) string {
	return filepath.Join(p.dir, filepath.Join(elem...))
}

// Root reads what an instance's root disk was made from; storage.ErrNotFound if there is none.
func (p *Pool) Root(instanceID string) (storage.Root, error) {
	if err := CheckID(instanceID); err != nil {
		return storage.Root{}, err
	}
	data, err := os.ReadFile(p.Path(instanceID, record))
	if errors.Is(err, os.ErrNotExist) {
		return storage.Root{}, fmt.Errorf("%w: instance %s", storage.ErrNotFound, instanceID)
	}
	var r storage.Root
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return storage.Root{}, fmt.Errorf("read record of root disk %s: %w", instanceID, err)
	}
	return r, nil
}

// Add makes an instance's directory: fill makes its content in a directory that
// nobody sees yet. An equal root disk that exists is left as it is; another one is
// an error.
func (p *Pool) Add(r storage.Root, fill func(dir string) error) error {
	if err := check(r); err != nil {
		return err
	}
	switch have, err := p.Root(r.InstanceID); {
	case err == nil && have == r:
		return nil
	case err == nil:
		return fmt.Errorf("root disk exists with other properties: %+v", have)
	case !errors.Is(err, storage.ErrNotFound):
		return err
	}
	dir := p.path(newDir, r.InstanceID)
	if err := os.Mkdir(dir, 0o711); err != nil { //nolint:gosec // see the package comment
		return err
	}
	// The umask of the process takes bits away.
	err := os.Chmod(dir, 0o711) //nolint:gosec // see the package comment
	if err == nil {
		err = fill(dir)
	}
	if err == nil {
		err = writeRecord(filepath.Join(dir, record), r)
	}
	if err == nil {
		err = os.Rename(dir, p.Path(r.InstanceID))
	}
	if err != nil {
		err = errors.Join(err, p.release(dir), p.trash(dir))
	} else {
		p.mu.Lock()
		p.fresh = append(p.fresh, r.InstanceID)
		p.mu.Unlock()
	}
	p.wake()
	return noSpace(err)
}

// Discard takes an instance's directory out of sight; Run removes it. Nothing in it
// may be mounted. What does not exist is discarded already.
func (p *Pool) Discard(instanceID string) error {
	if err := CheckID(instanceID); err != nil {
		return err
	}
	err := p.trash(p.Path(instanceID))
	p.wake()
	return err
}

// trash moves a directory into the trash by one rename: what is made there first could be removed by Run before it is filled.
func (p *Pool) trash(dir string) error {
	err := os.Rename(dir, p.path(trashDir, rand.Text()))
	if _, statErr := os.Lstat(dir); errors.Is(err, os.ErrNotExist) && errors.Is(statErr, os.ErrNotExist) {
		return nil
	}
	return err
}

func (p *Pool) wake() {
	select {
	case p.nudge <- struct{}{}:
	default: // Run will look anyway
	}
}

// Run removes what was discarded, by this process or by one before it, and forces
// new directories to disk, until ctx ends. Neither is worth an instance's waiting:
// a host crash in the second between loses an instance that has just begun.
func (p *Pool) Run(ctx context.Context) error {
	retry := time.NewTicker(retryInterval)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.nudge:
		case <-retry.C:
		}
		if err := p.settle(); err != nil {
			reqctx.Log(ctx).WithField("path", p.dir).WithError(err).Warning("root disks are not known to be on disk")
		}
		if err := p.empty(ctx); err != nil {
			reqctx.Log(ctx).WithField("path", p.path(trashDir)).WithError(err).Warning("root disks are not removed yet")
		}
	}
}

func (p *Pool) settle() error {
	p.mu.Lock()
	fresh := p.fresh
	p.fresh = nil
	p.mu.Unlock()
	var errs []error
	for _, id := range fresh {
		entries, err := os.ReadDir(p.Path(id))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted since
		}
		errs = append(errs, err)
		for _, e := range entries {
			if e.Type().IsRegular() {
				errs = append(errs, syncPath(p.Path(id, e.Name())))
			}
		}
		errs = append(errs, syncPath(p.Path(id)))
	}
	if len(fresh) > 0 {
		errs = append(errs, syncPath(p.dir))
	}
	return errors.Join(errs...)
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// empty removes one directory after the other: freeing the blocks of large files
// keeps the disk busy, and one at a time leaves the guests theirs.
func (p *Pool) empty(ctx context.Context) error {
	entries, err := os.ReadDir(p.path(trashDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if ctx.Err() != nil {
			break
		}
		errs = append(errs, os.RemoveAll(p.path(trashDir, e.Name())))
	}
	return errors.Join(errs...)
}

// List returns the instances that have a directory.
func (p *Pool) List() ([]string, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, fmt.Errorf("list root disks: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && CheckID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Usage tells the size of the file system that holds the directory.
func (p *Pool) Usage() (storage.Usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return storage.Usage{}, fmt.Errorf("read size of %s: %w", p.dir, err)
	}
	block := uint64(st.Bsize) //nolint:gosec // positive
	return storage.Usage{Total: st.Blocks * block, Free: st.Bavail * block}, nil
}

func writeRecord(file string, r storage.Root) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o600)
}

var idForm = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_-]{0,127}$`)

// CheckID tells whether an instance id can name a directory.
func CheckID(id string) error {
	if !idForm.MatchString(id) {
		return fmt.Errorf("instance id %q is not a UUID", id)
	}
	return nil
}

func check(r storage.Root) error {
	if err := CheckID(r.InstanceID); err != nil {
		return err
	}
	if !filepath.IsAbs(r.ImagePath) || strings.ContainsAny(r.ImagePath, `:,\`) {
		return fmt.Errorf("image path %q is not an absolute path without ':', ',' and '\\'", r.ImagePath)
	}
	if r.SizeGB < 0 {
		return fmt.Errorf("size %d GiB is negative", r.SizeGB)
	}
	if r.IDs.Base == 0 || r.IDs.Size == 0 || uint64(r.IDs.Base)+uint64(r.IDs.Size) >= 1<<32 {
		return fmt.Errorf("id range %d+%d is not one that a guest may have", r.IDs.Base, r.IDs.Size)
	}
	return nil
}

// noSpace makes a full host disk recognisable.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", storage.ErrNoSpace, err)
	}
	return err
}
