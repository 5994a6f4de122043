// Package prjquota bounds what is in a directory by a project quota of the file system that it lies on
// (ext4 or xfs, mounted with prjquota).
//
// A directory that Make makes has a project of its own. What is made below it is of that project too, and a
// guest can change neither that nor the limit: the kernel takes it from the first user namespace alone.
//
// The kernel keeps all there is to know: the project's id is in the directory's inode, its limit and its use are in the file
// system's quota. An id is taken by giving it to the directory, and is the directory's if the quota then counts
// that one inode and has no limit. So neither a crash nor another program, nor another agent on the same file system, can
// bring one id to two directories.
package prjquota

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

const (
	// firstID and ids are the range of projects made here. Others count upwards from small numbers: administrators in
	// /etc/projid, LXD from 10000, the kubelet from 1048577.
	firstID, ids = 1 << 30, 1 << 30
	// attempts bounds the search for an id that nobody has.
	attempts = 64
	// closeTimeout is how long Remove waits for files that are removed already and still count: xfs forgets them in the background.
	closeTimeout, closePause = 2 * time.Second, 10 * time.Millisecond
)

// Limit bounds a directory, or says what it holds.
type Limit struct {
	Bytes  uint64
	Inodes uint64 // files, directories and all else that has an inode
}

// Check tells whether the file system of a directory enforces project quotas: storage.ErrUnsupported says what is in the way.
func Check(dir string) error {
	d, err := open(dir)
	if err != nil {
		return err
	}
	defer d.close()
	return d.enforced()
}

// Make makes an empty directory with a limit. One that exists is an error. What a failure leaves is Remove's.
func Make(dir string, l Limit) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make directory with a quota: %w", err)
	}
	d, err := open(dir)
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.enforced(); err != nil {
		return err
	}
	id, err := claim(d, func() uint32 { return firstID + rand.Uint32N(ids) }) //nolint:gosec // no secret
	if err == nil {
		err = d.limit(id, l)
	}
	if err != nil {
		return fmt.Errorf("make directory with a quota: %w", err)
	}
	return nil
}

// quotas are a directory and the quotas of its file system.
type quotas interface {
	assign(id uint32) error                        // gives the directory to a project
	look(id uint32) (used, limit Limit, err error) // a project that never was holds nothing
}

// claim gives a directory that is empty a project that nobody else has.
func claim(q quotas, draw func() uint32) (uint32, error) {
	for range attempts {
		id := draw()
		if used, limit, err := q.look(id); err != nil {
			return 0, err
		} else if used.Inodes > 0 || limit != (Limit{}) {
			continue
		}
		if err := q.assign(id); err != nil {
			return 0, err
		}
		// Somebody may have taken it in between. Then it is nobody's: the other one sees two inodes as well, or has set a limit.
		used, limit, err := q.look(id)
		if err != nil {
			return 0, err
		}
		if used.Inodes == 1 && limit == (Limit{}) {
			return id, nil
		}
	}
	return 0, fmt.Errorf("no project id without use or limit in %d attempts", attempts)
}

// Set gives a directory of Make a limit. A limit of as many bytes stays as it is.
func Set(dir string, l Limit) error {
	d, id, err := find(dir)
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.enforced(); err != nil {
		return err
	}
	_, have, err := d.look(id)
	if err == nil && have.Bytes != l.Bytes {
		err = d.limit(id, l)
	}
	if err != nil {
		return fmt.Errorf("limit %s: %w", dir, err)
	}
	return nil
}

// Look tells what a directory of Make holds, and its limit.
func Look(dir string) (used, limit Limit, err error) {
	d, id, err := find(dir)
	if err != nil {
		return Limit{}, Limit{}, err
	}
	defer d.close()
	return d.look(id)
}

// find opens a directory of Make.
func find(dir string) (*directory, uint32, error) {
	d, err := open(dir)
	if err != nil {
		return nil, 0, err
	}
	id, err := d.project()
	if err == nil && !ours(id) {
		err = fmt.Errorf("%s has lost its project (it is now %d), as by a copy or a restored backup: nothing bounds it", dir, id)
	}
	if err != nil {
		d.close()
		return nil, 0, err
	}
	return d, id, nil
}

func ours(id uint32) bool { return id >= firstID && id-firstID < ids }

// Remove removes a directory of Make with all that is in it, and the project's limit. The directory goes last, since it alone
// names the project: one that is cut off is completed by the next. What does not exist is removed already.
// storage.ErrBusy: files that are removed are still open, and bounded until they are not.
func Remove(dir string) error {
	d, err := open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.close()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	id, err := d.project()
	if err == nil && ours(id) && d.enforced() == nil { // without quotas there is no limit to take back
		err = d.release(id)
	}
	if err != nil && !errors.Is(err, unix.ENOTTY) { // a file system without projects
		return fmt.Errorf("take back quota of %s: %w", dir, err)
	}
	return os.Remove(dir)
}

// release takes the limit of the directory's project back when the directory is all that is left of it.
func (d *directory) release(id uint32) error {
	tick := time.NewTicker(closePause)
	defer tick.Stop()
	for end := time.Now().Add(closeTimeout); ; <-tick.C {
		used, limit, err := d.look(id)
		switch {
		case err != nil:
			return err
		case used.Inodes <= 1 && limit == (Limit{}):
			return nil
		case used.Inodes <= 1:
			return d.limit(id, Limit{})
		case time.Now().After(end):
			return fmt.Errorf("%w: %d files that were removed are still open", storage.ErrBusy, used.Inodes-1)
		}
	}
}
