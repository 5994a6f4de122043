package lxc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
)

const (
	// defaultLXCFSMount is where distributions mount lxcfs.
	defaultLXCFSMount = "/var/lib/lxcfs"
	// lxcfsType is what the kernel calls its mounts.
	lxcfsType = "fuse.lxcfs"
)

// lxcfsFiles are those that guests see through lxcfs instead of the kernel's own: paths below its mount point
// and below the guest's root.
var lxcfsFiles = []string{
	"proc/cpuinfo", "proc/diskstats", "proc/loadavg", "proc/meminfo", "proc/stat", "proc/swaps", "proc/uptime",
	"sys/devices/system/cpu/online",
}

const (
	// mountsSettle keeps a burst of mounts on the host (boots, deletes) from being looked at one by one.
	mountsSettle = time.Second
	// lxcfsRetry is the pause after a new lxcfs did not answer.
	lxcfsRetry = 10 * time.Second
	// lxcfsTimeout bounds the wait for lxcfs' answer, and for the work on one guest.
	lxcfsTimeout = 5 * time.Second
)

// lxcfsPasses are the pauses after each look at all guests that a new lxcfs causes: one that was being started or
// rebooted meanwhile had no init whose mounts could be looked at.
var lxcfsPasses = []time.Duration{2 * time.Second, 10 * time.Second, 30 * time.Second, -1}

var _ storage.Runner = (*Driver)(nil)

// Run gives running guests the files of the lxcfs that is mounted now, until ctx ends. What lxcfs served goes
// with its process: a guest keeps mounts that answer ENOTCONN, also after systemd has started lxcfs again. While
// nothing is mounted on the host, it sleeps.
func (d *Driver) Run(ctx context.Context) error {
	if d.o.LXCFS == ModeOff {
		return nil
	}
	// The table's file is ready for POLLPRI whenever it has changed (fs/proc_namespace.c:mounts_poll).
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("watch mounts: %w", err)
	}
	defer table.Close() //nolint:errcheck // only read
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch mounts: %w", err)
	}
	defer unix.Close(wake) //nolint:errcheck // nothing was written
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-woken // it uses the descriptor
		}
	}()
	k := newLXCFSKeeper(d, lxcfsTimeout)
	for {
		ready, err := pollWithin(k.look(ctx), wake, unix.POLLIN, int(table.Fd()), unix.POLLPRI)
		if err != nil {
			return fmt.Errorf("watch mounts: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		if ready[1] && pause(ctx, mountsSettle) != nil {
			return nil
		}
	}
}

// lxcfsKeeper remembers what guests have been given. It belongs to one goroutine.
type lxcfsKeeper struct {
	d       *Driver
	timeout time.Duration // of the work on one guest

	device string               // of the lxcfs that guests have; "": none
	pass   int                  // of lxcfsPasses, that comes next
	due    time.Time            // when it comes
	hung   map[int]<-chan error // guests on whom somebody still works, by the init
}

func newLXCFSKeeper(d *Driver, timeout time.Duration) *lxcfsKeeper {
	return &lxcfsKeeper{d: d, timeout: timeout, hung: make(map[int]<-chan error)}
}

// look does what is to do now and tells when to look again at the latest; negative: when the table of mounts changes.
func (k *lxcfsKeeper) look(ctx context.Context) time.Duration {
	log := reqctx.Log(ctx).WithField("path", k.d.o.LXCFSMount)
	now := mountedAt(k.d.o.LXCFSMount)
	switch {
	case now == "" && k.device == "":
		return -1
	case now == "":
		log.Warning("lxcfs is not mounted any more; guests cannot read their /proc/meminfo and uptime until it is back")
		k.device = ""
		return -1
	case now != k.device:
		if err := k.d.lxcfsServer.answers(ctx); err != nil {
			log.WithError(err).Warning("lxcfs does not answer")
			return lxcfsRetry
		}
		k.device, k.pass, k.due = now, 0, time.Time{}
	case k.pass == len(lxcfsPasses):
		return -1
	}
	if early := time.Until(k.due); early > 0 {
		return early
	}
	next := lxcfsPasses[k.pass]
	k.pass++
	k.allGuests(ctx, k.pass == len(lxcfsPasses))
	k.due = time.Now().Add(next)
	return next
}

// mountedAt is the device of the file system whose mount begins at path; "": none does. Its server is not asked: it
// may have died, or hang.
func mountedAt(path string) string {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, 0, &st)
	if err != nil || st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return ""
	}
	return fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor)
}

// lxcfsServer asks lxcfs, one question at a time: one that hangs keeps a thread for each.
type lxcfsServer struct {
	mount string
	limit time.Duration // of its answer

	mu    sync.Mutex // guards asked
	asked *lxcfsQuestion
}

type lxcfsQuestion struct {
	answered chan struct{}
	err      error // when answered is closed
}

// answers waits until lxcfs has answered a question.
func (s *lxcfsServer) answers(ctx context.Context) error {
	s.mu.Lock()
	q := s.asked
	if q == nil {
		q = &lxcfsQuestion{answered: make(chan struct{})}
		s.asked = q
		go func() {
			q.err = readLXCFS(filepath.Join(s.mount, "proc", "uptime"))
			s.mu.Lock()
			s.asked = nil
			s.mu.Unlock()
			close(q.answered)
		}()
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, s.limit, fmt.Errorf("no answer after %s", s.limit))
	defer cancel()
	select {
	case <-q.answered:
		return q.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// readLXCFS reads a file without the runtime's poller: to add a file to that asks the file system whether it is ready
// (fs/fuse/file.c:fuse_file_poll), and while lxcfs does not answer, nothing in this process could wait for anything else.
func readLXCFS(file string) error {
	return uninterrupted(func() error {
		fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", file, err)
		}
		defer unix.Close(fd) //nolint:errcheck // nothing was written
		if _, err := unix.Read(fd, make([]byte, 64)); err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		return nil
	})
}

func uninterrupted(do func() error) error {
	for {
		if err := do(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// await waits for the end of something that cannot be interrupted; ended is false if it goes on.
func await(ctx context.Context, done <-chan error, limit time.Duration) (err error, ended bool) { //nolint:revive // the error is not this function's own
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-done:
		return err, true
	case <-ctx.Done():
		return ctx.Err(), false
	case <-timer.C:
		return fmt.Errorf("no end after %s", limit), false
	}
}

// allGuests looks at every guest that runs. last: nobody looks again at one that fails.
func (k *lxcfsKeeper) allGuests(ctx context.Context, last bool) {
	records, err := k.d.records(ctx)
	if err != nil {
		reqctx.Log(ctx).WithError(err).Error("cannot look for guests without lxcfs")
		return
	}
	given := 0
	for _, rec := range records {
		changed, err := k.guest(ctx, rec)
		if ctx.Err() != nil {
			return
		}
		log := reqctx.Log(ctx).WithField("instance", rec.Spec.UUID)
		switch {
		case err != nil && last:
			log.WithError(err).Warning("guest stays without lxcfs until it is started again")
		case err != nil:
			log.WithError(err).Debug("guest not given lxcfs yet")
		case changed:
			given++
		}
	}
	if given > 0 {
		reqctx.Log(ctx).WithField("guests", given).Info("guests given the lxcfs that runs now")
	}
}

// guest gives one guest the files that it lacks, and tells whether it got any.
func (k *lxcfsKeeper) guest(ctx context.Context, rec record) (bool, error) {
	g, err := k.d.lookup(rec.Spec.Name)
	if err != nil || g.init == 0 {
		return false, err
	}
	if done := k.hung[g.init]; done != nil {
		select {
		case err := <-done:
			delete(k.hung, g.init)
			if err != nil {
				return false, err
			}
		default:
			return false, errors.New("an earlier attempt still hangs in the guest's files")
		}
	}
	table, err := os.Open(procFile(g.init, "mountinfo"))
	if err != nil {
		return false, nil //nolint:nilerr // it has ended
	}
	defer table.Close() //nolint:errcheck // only read
	work, err := lacking(table, k.device)
	if err != nil || len(work) == 0 {
		return false, err
	}
	var given atomic.Int32
	done := onOwnThread(func() error { return k.d.giveLXCFS(rec, g.init, work, &given) })
	err, ended := await(ctx, done, k.timeout)
	if !ended {
		k.hung[g.init] = done
	}
	return given.Load() > 0, err
}

// lxcfsWork is a file that a guest lacks, below so many mounts of an lxcfs that is gone.
type lxcfsWork struct {
	file string
	dead int
}

// lacking reads a guest's table of mounts (proc_pid_mountinfo(5)) for the files that it does not have of the lxcfs with this
// device. Where something else is mounted, the guest has its own.
func lacking(table io.Reader, device string) ([]lxcfsWork, error) {
	type mounted struct{ device, fstype string }
	stacks := make(map[string][]mounted, len(lxcfsFiles))
	lines := bufio.NewScanner(table)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		mount, source, _ := strings.Cut(lines.Text(), " - ")
		if f, of := strings.Fields(mount), strings.Fields(source); len(f) > 4 && len(of) > 0 {
			stacks[f[4]] = append(stacks[f[4]], mounted{f[2], of[0]})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the guest's mounts: %w", err)
	}
	var work []lxcfsWork
	for _, file := range lxcfsFiles {
		stack, w := stacks["/"+file], lxcfsWork{file: file}
		for w.dead < len(stack) {
			top := stack[len(stack)-1-w.dead]
			if top.fstype != lxcfsType || top.device == device {
				break
			}
			w.dead++
		}
		if w.dead > 0 || len(stack) == 0 {
			work = append(work, w)
		}
	}
	return work, nil
}
