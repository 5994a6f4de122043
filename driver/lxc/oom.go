package lxc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// oomDelay is the time between the kernel's word that a guest is short of memory and the look at what it has killed: v1 speaks
// before it kills, and a guest may be short of memory many times a second.
const oomDelay = time.Second

// oomWatch is what a watcher knows of a guest's want of memory.
type oomWatch struct {
	on    bool      // the kernel will tell
	fd    int       // v1: eventfd; v2: descriptor of the file in the watcher's inotify
	kills int64     // that were told of
	due   time.Time // of the look; zero: the kernel has told nothing
}

// watchOOM makes the kernel tell when a guest gets short of memory. Its group is a new one after every start and reboot.
func (w *watcher) watchOOM(ctx context.Context, g *watched) {
	w.dropOOM(g)
	var err error
	if w.d.cgroups.layout == layoutV2 {
		err = w.watchEvents(g)
	} else {
		err = w.watchControl(g)
	}
	if err != nil { // a kernel that does not tell, or a guest that has just gone
		reqctx.Log(ctx).WithField("instance", g.uuid).WithError(err).Debug("guest not watched for want of memory")
		return
	}
	g.oom.on, g.oom.due = true, time.Time{}
	g.oom.kills = w.d.cgroups.oomKills(ctx, payload(g.name))
}

// watchEvents asks for the next change of memory.events alone: one that changes all the time is looked at now and then.
func (w *watcher) watchEvents(g *watched) error {
	if w.inotify < 0 {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return fmt.Errorf("create inotify: %w", err)
		}
		if err := w.add(fd, nil); err != nil {
			_ = unix.Close(fd)
			return err
		}
		w.inotify = fd
	}
	wd, err := unix.InotifyAddWatch(w.inotify, w.d.cgroups.file(unified, payload(g.name), "memory.events"), unix.IN_MODIFY|unix.IN_ONESHOT)
	if err != nil {
		return fmt.Errorf("watch memory events: %w", err)
	}
	g.oom.fd = wd
	return nil
}

// watchControl registers for notifications of v1 (Documentation/admin-guide/cgroup-v1/memory.rst, 10).
func (w *watcher) watchControl(g *watched) error {
	group := payload(g.name)
	control, err := os.Open(w.d.cgroups.file("memory", group, "memory.oom_control"))
	if err != nil {
		return err
	}
	defer control.Close() //nolint:errcheck // the kernel keeps what it needs
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("create eventfd: %w", err)
	}
	request := fmt.Appendf(nil, "%d %d", fd, control.Fd())
	err = os.WriteFile(w.d.cgroups.file("memory", group, "cgroup.event_control"), request, 0)
	if err == nil {
		err = w.add(fd, g)
	}
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	g.oom.fd = fd
	return nil
}

func (w *watcher) dropOOM(g *watched) {
	if !g.oom.on {
		return
	}
	g.oom.on = false
	if w.d.cgroups.layout == layoutV2 {
		_, _ = unix.InotifyRmWatch(w.inotify, uint32(g.oom.fd)) //nolint:gosec // the kernel's number; one that has told is gone already
		return
	}
	delete(w.byFD, g.oom.fd)
	_ = unix.Close(g.oom.fd)
}

// shortOfMemory notes that the kernel has told of one guest (v1).
func (w *watcher) shortOfMemory(g *watched) {
	var count [8]byte
	_, _ = unix.Read(g.oom.fd, count[:])
	g.oom.soon()
}

// memoryEvents notes of which guests the kernel has told (v2).
func (w *watcher) memoryEvents() {
	var buffer [4096]byte
	n, _ := unix.Read(w.inotify, buffer[:])
	for b := buffer[:max(n, 0)]; len(b) >= unix.SizeofInotifyEvent; {
		wd := int(int32(binary.NativeEndian.Uint32(b)))           //nolint:gosec // it is a signed number
		name := int(binary.NativeEndian.Uint32(b[12:]))           // the length of a name that a file's event does not have
		b = b[min(len(b), unix.SizeofInotifyEvent+max(name, 0)):] //
		for _, g := range w.guests {
			if g.oom.on && g.oom.fd == wd {
				g.oom.soon()
			}
		}
	}
}

func (o *oomWatch) soon() {
	if o.due.IsZero() {
		o.due = time.Now().Add(oomDelay)
	}
}

// lookAfterMemory tells of the guests in which the kernel has killed.
func (w *watcher) lookAfterMemory(ctx context.Context) {
	for _, g := range w.guests {
		if g.oom.due.IsZero() || time.Now().Before(g.oom.due) {
			continue
		}
		killed := w.newKills(ctx, g)
		if killed > 0 {
			reqctx.Log(ctx).WithField("instance", g.uuid).WithField("name", g.name).WithField("killed", killed).WithField("killed_since_start", g.oom.kills).
				Warning("the kernel killed processes of a guest that has no memory left")
		}
	}
}

// newKills counts those that have not been told of.
func (w *watcher) newKills(ctx context.Context, g *watched) int64 {
	g.oom.due = time.Time{}
	if w.d.cgroups.layout == layoutV2 { // before the count: what comes after it is another event
		if err := w.watchEvents(g); err != nil && !errors.Is(err, os.ErrNotExist) {
			reqctx.Log(ctx).WithField("instance", g.uuid).WithError(err).Warning("guest not watched for want of memory any more")
		}
	}
	kills := w.d.cgroups.oomKills(ctx, payload(g.name))
	killed := max(kills-g.oom.kills, 0) // v1 forgets those of a group that is gone
	g.oom.kills = kills
	return killed
}
