package unsquash

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watchInterval is the time between looks at the file system: a disk writes less
// than the usual reserve in it.
const watchInterval = 100 * time.Millisecond

// usage is what statfs tells of a file system.
type usage struct {
	inodes int64 // in use; always 0 on btrfs, which counts none: inodes take blocks there and can run out no sooner
	bytes  int64 // in use
	free   int64 // bytes that others than root may take
	block  int64 // bytes of a block
}

func look(path string) (usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return usage{}, fmt.Errorf("look at file system of %s: %w", path, err)
	}
	return usage{
		// Files by itself grows and shrinks where inodes are made as needed (xfs, zfs); the difference does not.
		inodes: int64(st.Files - st.Ffree),                   //nolint:gosec // less than 2^63
		bytes:  int64(st.Blocks-st.Bfree) * st.Bsize,         //nolint:gosec // less than 2^63
		free:   int64(st.Bavail) * st.Bsize, block: st.Bsize, //nolint:gosec // less than 2^63
	}, nil
}

// watcher holds a running program to the limits.
type watcher struct {
	o       Options
	before  usage
	process *os.Process
}

// watch returns nil when ctx is done, and else why the run must end.
func (w *watcher) watch(ctx context.Context) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := look(w.o.Target)
		if err != nil {
			return err
		}
		if now.free < w.o.Reserve {
			return fmt.Errorf("unpack squashfs: %w", unix.ENOSPC)
		}
		if !w.suspicious(now) {
			continue
		}
		if err := w.judge(ctx); err != nil {
			return err
		}
	}
}

// suspicious tells whether more came into use than the tree may take. Besides its content
// a file takes what is left of its last block, as a directory or a long link does.
func (w *watcher) suspicious(now usage) bool {
	entries := int64(w.o.Entries)
	return now.inodes-w.before.inodes > entries || now.bytes-w.before.bytes-entries*now.block > w.o.Bytes
}

// judge stops the program and has the tree looked at. Guests and other imports write to the same
// file system: when it was they, the program may take as much again until the next look, so that it
// gets to twice the limit at most, and only while they write as much.
func (w *watcher) judge(ctx context.Context) error {
	// The first process of a process namespace obeys SIGSTOP from outside of it. One that has
	// ended is judged all the same; one that must end is not let go on.
	_ = w.process.Signal(unix.SIGSTOP)
	if err := w.o.Judge(ctx); err != nil {
		return err
	}
	now, err := look(w.o.Target)
	if err != nil {
		return err
	}
	w.before = now
	_ = w.process.Signal(unix.SIGCONT)
	return nil
}
