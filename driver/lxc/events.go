package lxc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

const (
	// eventBuffer lets a burst (a host's shutdown) pass while the reader works.
	eventBuffer = 64
	// epollBatch is how many descriptors one wait reports.
	epollBatch = 64
	// hungMonitor is how long a monitor may stay without an init before the guest counts
	// as stopped: a guest that reboots inside is back in a fraction of that.
	hungMonitor = 30 * time.Second
	// rebootPoll is how often a monitor without an init is looked at.
	rebootPoll = 50 * time.Millisecond
)

// Events implements driver.Driver. The channel is closed when ctx ends.
//
// A guest has stopped when its monitor has: by then its links are back on the host.
// A guest that reboots inside keeps its monitor and makes no event.
func (d *Driver) Events(ctx context.Context) <-chan driver.Event {
	out := make(chan driver.Event, eventBuffer)
	w, err := newWatcher(d, out)
	if err != nil {
		reqctx.Log(ctx).WithError(err).Error("cannot watch guests")
		close(out)
		return out
	}
	d.mu.Lock()
	d.subs[w] = true
	d.mu.Unlock()
	go w.run(ctx)
	return out
}

// changed tells the watchers about a state that the driver itself brought about.
func (d *Driver) changed(rec record, state driver.PowerState) {
	e := driver.Event{UUID: rec.Spec.UUID, PowerState: state, At: time.Now()}
	d.mu.Lock()
	defer d.mu.Unlock()
	for w := range d.subs {
		w.tell(told{event: e, name: rec.Spec.Name})
	}
}

// told is a change that the driver made, on its way to a watcher.
type told struct {
	event driver.Event
	name  string
}

// watched is a running guest.
type watched struct {
	uuid, name    string
	monitor, init *process  // init is nil while the guest reboots inside
	since         time.Time // when init was last seen to end
	oom           oomWatch
}

// watcher follows the guests of one Events call: one epoll descriptor over two
// pidfds per guest, one goroutine for all of them.
type watcher struct {
	d      *Driver
	out    chan<- driver.Event
	epoll  int
	wakeFD int // eventfd

	inotify int // of the guests' memory events; -1: none yet, or v1. The goroutine's

	mu    sync.Mutex // guards inbox and ended
	inbox []told
	ended bool // wakeFD is closed

	// Owned by the goroutine.
	guests map[string]*watched // by UUID
	byFD   map[int]*watched
}

func newWatcher(d *Driver, out chan<- driver.Event) (*watcher, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epoll)
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	w := &watcher{
		d: d, out: out, epoll: epoll, wakeFD: wake, inotify: -1,
		guests: make(map[string]*watched), byFD: make(map[int]*watched),
	}
	if err := w.add(wake, nil); err != nil {
		_ = unix.Close(epoll)
		_ = unix.Close(wake)
		return nil, err
	}
	return w, nil
}

func (w *watcher) tell(t told) {
	w.mu.Lock()
	w.inbox = append(w.inbox, t)
	w.mu.Unlock()
	w.wake()
}

func (w *watcher) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(w.wakeFD, one[:]) // a full counter wakes as well
}

func (w *watcher) run(ctx context.Context) {
	defer w.close()
	stop := context.AfterFunc(ctx, w.wake)
	defer stop()
	records, err := w.d.records(ctx)
	if err != nil {
		reqctx.Log(ctx).WithError(err).Error("cannot watch the guests that run already")
	}
	for _, r := range records {
		w.follow(ctx, r.Spec.UUID, r.Spec.Name)
	}
	events := make([]unix.EpollEvent, epollBatch)
	for ctx.Err() == nil {
		n, err := unix.EpollWait(w.epoll, events, w.nextLook())
		if err != nil && !errors.Is(err, unix.EINTR) {
			reqctx.Log(ctx).WithError(err).Error("cannot watch guests")
			return
		}
		for _, e := range events[:max(n, 0)] {
			w.ready(ctx, int(e.Fd))
		}
		w.lookAfterReboots(ctx)
		w.lookAfterMemory(ctx)
	}
}

// nextLook is epoll's timeout: for ever, unless a guest reboots or is short of memory.
func (w *watcher) nextLook() int {
	next := -1
	for _, g := range w.guests {
		if g.init == nil {
			return int(rebootPoll.Milliseconds())
		}
		if g.oom.due.IsZero() {
			continue
		}
		if ms := int(max(time.Until(g.oom.due), 0).Milliseconds()) + 1; next < 0 || ms < next {
			next = ms
		}
	}
	return next
}

func (w *watcher) ready(ctx context.Context, fd int) {
	if fd == w.wakeFD {
		w.drain(ctx)
		return
	}
	if fd == w.inotify {
		w.memoryEvents()
		return
	}
	g := w.byFD[fd]
	if g == nil {
		return
	}
	if g.oom.on && fd == g.oom.fd && w.inotify < 0 { // v2's number is no descriptor
		w.shortOfMemory(g)
		return
	}
	if fd == g.monitor.fd {
		w.stopped(ctx, g)
		return
	}
	// The init has ended; the monitor tells what that means, by ending or by another init.
	w.drop(g.init)
	g.init, g.since = nil, time.Now()
}

// drain takes over the changes that the driver made.
func (w *watcher) drain(ctx context.Context) {
	var count [8]byte
	_, _ = unix.Read(w.wakeFD, count[:])
	w.mu.Lock()
	inbox := w.inbox
	w.inbox = nil
	w.mu.Unlock()
	for _, t := range inbox {
		if g := w.guests[t.event.UUID]; g != nil && g.monitor.exited() {
			w.stopped(ctx, g) // stopped and started again before we looked
		}
		w.send(ctx, t.event)
		w.follow(ctx, t.event.UUID, t.name)
	}
}

// follow begins to watch a guest if it runs and is not watched yet.
func (w *watcher) follow(ctx context.Context, uuid, name string) {
	if w.guests[uuid] != nil {
		return
	}
	now, err := w.d.lookup(name)
	if err != nil {
		reqctx.Log(ctx).WithError(err).WithField("instance", uuid).Warning("cannot watch guest")
		return
	}
	if !now.running() {
		return
	}
	g := &watched{uuid: uuid, name: name, since: time.Now()}
	g.monitor, err = w.open(g, now.monitor, monitor(name))
	if err != nil {
		if !errors.Is(err, unix.ESRCH) {
			reqctx.Log(ctx).WithError(err).WithField("instance", uuid).Warning("cannot watch guest")
			return
		}
		w.send(ctx, driver.Event{UUID: uuid, PowerState: driver.PowerStateShutdown, At: time.Now()})
		return
	}
	w.guests[uuid] = g
	w.findInit(ctx, g, now.init)
}

// findInit watches a guest's init if there is one.
func (w *watcher) findInit(ctx context.Context, g *watched, pid int) {
	if pid == 0 {
		return
	}
	if p, err := w.open(g, pid, payload(g.name)); err == nil {
		g.init = p
		w.watchOOM(ctx, g)
	}
}

func (w *watcher) open(g *watched, pid int, group string) (*process, error) {
	p, err := openProcess(pid, func() bool { return inGroup(pid, group) })
	if err != nil {
		return nil, err
	}
	if err := w.add(p.fd, g); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (w *watcher) add(fd int, g *watched) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)} //nolint:gosec // descriptors are small
	if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return fmt.Errorf("watch descriptor: %w", err)
	}
	if g != nil {
		w.byFD[fd] = g
	}
	return nil
}

// lookAfterReboots finds the new init of guests whose init has ended, and gives up on
// monitors that stay without one.
func (w *watcher) lookAfterReboots(ctx context.Context) {
	for _, g := range w.guests {
		if g.init != nil {
			continue
		}
		w.findInit(ctx, g, w.d.initOf(g.name, g.monitor.pid))
		if g.init == nil && time.Since(g.since) > hungMonitor {
			reqctx.Log(ctx).WithField("instance", g.uuid).Warning("container monitor stays without a guest")
			w.stopped(ctx, g)
		}
	}
}

func (w *watcher) stopped(ctx context.Context, g *watched) {
	w.forget(g)
	w.send(ctx, driver.Event{UUID: g.uuid, PowerState: driver.PowerStateShutdown, At: time.Now()})
}

func (w *watcher) send(ctx context.Context, e driver.Event) {
	select {
	case w.out <- e:
	case <-ctx.Done():
	}
}

func (w *watcher) forget(g *watched) {
	delete(w.guests, g.uuid)
	w.dropOOM(g)
	w.drop(g.monitor)
	if g.init != nil {
		w.drop(g.init)
	}
}

func (w *watcher) drop(p *process) {
	delete(w.byFD, p.fd)
	p.close() // closing removes it from epoll
}

func (w *watcher) close() {
	w.d.mu.Lock()
	delete(w.d.subs, w)
	w.d.mu.Unlock()
	for _, g := range w.guests {
		w.forget(g)
	}
	if w.inotify >= 0 {
		_ = unix.Close(w.inotify)
	}
	w.mu.Lock()
	w.ended = true
	_ = unix.Close(w.wakeFD)
	w.mu.Unlock()
	_ = unix.Close(w.epoll)
	close(w.out)
}
