// Package pool keeps the directory of disks of one back end: a directory and
// a record per instance, made and taken away by one rename each.
//
//	<dir>/<instance>/root.json   what Create was asked for; the name is the back end's
//	<dir>/.new/<instance>-<x>    being made; wiped when the pool is opened
//	<dir>/.trash/                to be removed in the background
//
// Directories have mode 0711: the guest's root, an ordinary user of the host, must
// be able to pass through them to its root file system, and nobody can list them.
package pool

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

const (
	newDir   = ".new"
	trashDir = ".trash"
	// retryInterval is the pause before removing again what could not be removed.
	retryInterval = time.Minute
)

// Options say what a back end puts into an instance's directory.
type Options struct {
	Record string // name of the record's file
	// Drop makes the file systems that are mounted in a directory forget what they have not
	// written yet, because the directory is about to be removed; nil: there is nothing to drop.
	Drop func(dir string) error
	// Remove takes a discarded directory away; nil: os.RemoveAll.
	Remove func(dir string) error
}

// Pool is an open directory whose records are of type R. Its methods may be called
// concurrently for different instances.
type Pool[R any] struct {
	dir   string
	o     Options
	nudge chan struct{} // capacity 1: there is work for Run

	mu    sync.Mutex
	fresh []string // instances whose directories are not known to be on disk; guarded by mu
}

// Open opens or makes the directory, which must not have ':', ',' or '\' in its
// path because overlayfs gives them a meaning, and wipes what a crash left half made.
func Open[R any](dir string, o Options) (*Pool[R], error) {
	if !filepath.IsAbs(dir) || strings.ContainsAny(dir, `:,\`) {
		return nil, fmt.Errorf("open disks: %q is not an absolute path without ':', ',' and '\\'", dir)
	}
	if o.Remove == nil {
		o.Remove = os.RemoveAll
	}
	p := &Pool[R]{dir: filepath.Clean(dir), o: o, nudge: make(chan struct{}, 1)}
	for _, d := range []string{p.dir, p.path(newDir), p.path(trashDir)} {
		if err := os.MkdirAll(d, 0o711); err != nil { //nolint:gosec // see the package comment
			return nil, fmt.Errorf("open disks: %w", err)
		}
		if err := os.Chmod(d, 0o711); err != nil { //nolint:gosec // see the package comment
			return nil, fmt.Errorf("open disks: %w", err)
		}
	}
	if err := checkPassable(filepath.Dir(p.dir)); err != nil {
		return nil, fmt.Errorf("open disks: %w", err)
	}
	half, err := os.ReadDir(p.path(newDir))
	if err != nil {
		return nil, fmt.Errorf("open disks: %w", err)
	}
	for _, e := range half {
		half := p.path(newDir, e.Name())
		if err := errors.Join(release(half), p.trash(half)); err != nil {
			return nil, fmt.Errorf("open disks: %w", err)
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
func (p *Pool[R]) Path(instanceID string, elem ...string) string {
	return p.path(append([]string{instanceID}, elem...)...)
}

func (p *Pool[R]) path(elem ...string) string {
	return filepath.Join(p.dir, filepath.Join(elem...))
}

// Scratch makes an empty directory for a trial; the caller removes it, else the next Open does.
func (p *Pool[R]) Scratch() (string, error) { return os.MkdirTemp(p.path(newDir), "probe-") }

// Get reads what an instance's disk was made from; storage.ErrNotFound if there is none.
func (p *Pool[R]) Get(instanceID string) (R, error) {
	var r R
	if err := storage.CheckID(instanceID); err != nil {
		return r, err
	}
	data, err := os.ReadFile(p.Path(instanceID, p.o.Record))
	if errors.Is(err, os.ErrNotExist) {
		return r, fmt.Errorf("%w: instance %s", storage.ErrNotFound, instanceID)
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return r, fmt.Errorf("read record of disk %s: %w", instanceID, err)
	}
	return r, nil
}

// Add makes an instance's directory: fill makes its content in a directory that
// nobody sees yet. One that exists for an equal record is left as it is; another one is
// an error.
func (p *Pool[R]) Add(instanceID string, r R, fill func(dir string) error) error {
	switch have, err := p.Get(instanceID); {
	case err == nil && reflect.DeepEqual(have, r):
		return nil
	case err == nil:
		return fmt.Errorf("disk exists with other properties: %+v", have)
	case !errors.Is(err, storage.ErrNotFound):
		return err
	}
	// Never the same path twice: what a killed process had started may still run, and would write there.
	dir := p.path(newDir, instanceID+"-"+rand.Text())
	if err := os.Mkdir(dir, 0o711); err != nil { //nolint:gosec // see the package comment
		return noSpace(err)
	}
	// The umask of the process takes bits away.
	err := os.Chmod(dir, 0o711) //nolint:gosec // see the package comment
	if err == nil {
		err = fill(dir)
	}
	if err == nil {
		err = p.writeRecord(dir, r)
	}
	if err == nil {
		err = os.Rename(dir, p.Path(instanceID))
	}
	if err != nil {
		err = errors.Join(err, release(dir), p.trash(dir))
	} else {
		p.remember(instanceID)
	}
	p.wake()
	return noSpace(err)
}

// Set replaces the record of an instance that has a directory.
func (p *Pool[R]) Set(instanceID string, r R) error {
	if _, err := p.Get(instanceID); err != nil {
		return err
	}
	if err := p.writeRecord(p.Path(instanceID), r); err != nil {
		return noSpace(err)
	}
	p.remember(instanceID)
	p.wake()
	return nil
}

// List returns the instances that have a directory.
func (p *Pool[R]) List() ([]string, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && storage.CheckID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Usage tells the size of the file system that holds the directory.
func (p *Pool[R]) Usage() (storage.Usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return storage.Usage{}, fmt.Errorf("read size of %s: %w", p.dir, err)
	}
	block := uint64(st.Bsize) //nolint:gosec // positive
	return storage.Usage{Total: st.Blocks * block, Free: st.Bavail * block}, nil
}

// writeRecord leaves the old record or the new one when it is cut off.
func (p *Pool[R]) writeRecord(dir string, r R) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(dir, p.o.Record)
	if err := os.WriteFile(file+".new", append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// noSpace makes a full host disk recognisable.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", storage.ErrNoSpace, err)
	}
	return err
}
