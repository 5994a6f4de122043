package pool

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// busyTimeout bounds the wait for users of a disk when the caller's own deadline is later.
const busyTimeout = 10 * time.Second

// mountPoints are the directories in an instance's directory, whatever is mounted
// there, in the order in which they are unmounted.
func mountPoints(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var points []string
	for _, e := range slices.Backward(entries) {
		if e.IsDir() {
			points = append(points, filepath.Join(dir, e.Name()))
		}
	}
	return points, nil
}

// release detaches everything that is mounted in a directory.
func release(dir string) error {
	points, err := mountPoints(dir)
	errs := []error{err}
	for _, point := range points {
		errs = append(errs, mount.Detach(point))
	}
	return errors.Join(errs...)
}

// Unmount unmounts what is mounted in an instance's directory; what does not exist is
// unmounted already. It waits for users until ctx ends, and some seconds at most:
// storage.ErrBusy.
func (p *Pool[R]) Unmount(ctx context.Context, instanceID string) error {
	return p.unmount(ctx, instanceID, mount.Unmount)
}

func (p *Pool[R]) unmount(ctx context.Context, instanceID string, unmount func(ctx context.Context, path string) error) error {
	if err := storage.CheckID(instanceID); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, busyTimeout)
	defer cancel()
	points, err := mountPoints(p.Path(instanceID))
	if err != nil {
		return err
	}
	for _, point := range points {
		if err := unmount(ctx, point); err != nil {
			return err
		}
	}
	return nil
}

// Delete takes an instance's directory out of sight, and Run removes it. What the
// guest wrote last is dropped rather than written.
func (p *Pool[R]) Delete(ctx context.Context, instanceID string) error {
	if err := storage.CheckID(instanceID); err != nil {
		return err
	}
	log := reqctx.Log(ctx).WithField("instance", instanceID)
	if p.o.Drop != nil {
		if err := p.o.Drop(p.Path(instanceID)); err != nil {
			log.WithError(err).Debug("disk is unmounted with its data") // slower, no more
		}
	}
	err := p.unmount(ctx, instanceID, mount.Leave)
	if errors.Is(err, storage.ErrBusy) && ctx.Err() == nil {
		log.WithError(err).Warning("disk is still in use, detaching it")
		err = release(p.Path(instanceID))
	}
	if err == nil {
		err = p.trash(p.Path(instanceID))
		p.wake()
	}
	return err
}

// Replace gives the disk of instance from to the instance to, whose own is discarded.
// Both are unmounted first. A crash in between leaves to without a disk, and from with it:
// the same call completes it.
func (p *Pool[R]) Replace(ctx context.Context, to, from string, update func(R) R) error {
	r, err := p.Get(from)
	if err != nil {
		return err
	}
	for _, id := range []string{from, to} {
		if err := p.Unmount(ctx, id); err != nil {
			return err
		}
	}
	if err := p.trash(p.Path(to)); err != nil {
		return err
	}
	if err := p.Set(from, update(r)); err != nil {
		return err
	}
	if err := os.Rename(p.Path(from), p.Path(to)); err != nil {
		return err
	}
	p.remember(to)
	p.wake()
	return nil
}

// trash moves a directory into the trash by one rename: what is made there first could be removed by Run before it is filled.
func (p *Pool[R]) trash(dir string) error {
	err := os.Rename(dir, p.path(trashDir, rand.Text()))
	if _, statErr := os.Lstat(dir); errors.Is(err, os.ErrNotExist) && errors.Is(statErr, os.ErrNotExist) {
		return nil
	}
	return err
}

func (p *Pool[R]) wake() {
	select {
	case p.nudge <- struct{}{}:
	default: // Run will look anyway
	}
}

// remember has Run force an instance's directory to disk.
func (p *Pool[R]) remember(instanceID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fresh = append(p.fresh, instanceID)
}

// Run removes what was discarded, by this process or by one before it, and forces
// new directories to disk, until ctx ends. Neither is worth an instance's waiting:
// a host crash in the second between loses an instance that has just begun.
func (p *Pool[R]) Run(ctx context.Context) error {
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
			reqctx.Log(ctx).WithField("path", p.dir).WithError(err).Warning("disks are not known to be on disk")
		}
		if err := p.empty(ctx); err != nil {
			reqctx.Log(ctx).WithField("path", p.path(trashDir)).WithError(err).Warning("disks are not removed yet")
		}
	}
}

func (p *Pool[R]) settle() error {
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
// keeps the disk busy, and one at a time leaves the guests theirs. Nothing should be
// mounted there; if something is, its content is not what is to be removed.
func (p *Pool[R]) empty(ctx context.Context) error {
	entries, err := os.ReadDir(p.path(trashDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if ctx.Err() != nil {
			break
		}
		dir := p.path(trashDir, e.Name())
		err := release(dir)
		if err == nil {
			err = p.o.Remove(dir)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
