package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// reclaimTimeout bounds the writing of a suspended guest's memory to swap: what takes longer stays in memory.
const reclaimTimeout = 30 * time.Second

const (
	// idleReclaims is after how many turns that bring nothing the rest of a guest's memory stays where it is.
	idleReclaims = 10
	// reclaimPause is what a disk gets to take what is on its way to swap.
	reclaimPause = 200 * time.Millisecond
	// worthReclaiming is what a guest has to hold, or a turn to bring, for another turn, in bytes.
	worthReclaiming = 1 << 20
)

// suspendSuffix ends the name of the file that says which run of a guest is suspended.
const suspendSuffix = ".suspended"

var _ driver.Suspender = (*Driver)(nil)

// Suspend implements driver.Suspender. The mark is written before the guest is frozen: a crash in
// between leaves a guest that runs, and one that runs is not suspended whatever the mark says.
func (d *Driver) Suspend(ctx context.Context, uuid string) error {
	rec, g, err := d.runs(ctx, uuid, "suspend")
	if err != nil {
		return err
	}
	run, err := runOf(g.init)
	if err != nil {
		return fmt.Errorf("suspend instance %s: %w", uuid, err)
	}
	if err := writeFile(d.suspendFile(uuid), []byte(run), false); err != nil {
		return err
	}
	if err := d.freezeGroup(ctx, rec.Spec.Name, true); err != nil {
		return errors.Join(fmt.Errorf("suspend instance %s: %w", uuid, err), d.endSuspension(uuid))
	}
	d.reclaim(ctx, rec.Spec.Name)
	d.changed(rec, driver.PowerStateSuspended)
	return nil
}

// Resume implements driver.Suspender.
func (d *Driver) Resume(ctx context.Context, uuid string) error {
	return d.freeze(ctx, uuid, false, driver.PowerStateRunning)
}

func (d *Driver) suspendFile(uuid string) string {
	return filepath.Join(d.o.StateDir, uuid+suspendSuffix)
}

// suspended tells whether this run of a guest was suspended. The caller knows that it is frozen.
func (d *Driver) suspended(uuid string, initPID int) bool {
	b, err := os.ReadFile(d.suspendFile(uuid))
	if err != nil {
		return false
	}
	run, err := runOf(initPID)
	return err == nil && string(b) == run
}

func (d *Driver) endSuspension(uuid string) error {
	if err := os.Remove(d.suspendFile(uuid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end suspension: %w", err)
	}
	return nil
}

// runOf names one run of a guest: its init's number and start, in this boot of the host.
func runOf(initPID int) (string, error) {
	ticks, err := startTicks(initPID)
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %d %s", initPID, ticks, strings.TrimSpace(string(boot))), nil
}

// reclaim asks the kernel to write a frozen guest's memory to swap. It is a favour to the
// host: what is not reclaimed stays where it is.
func (d *Driver) reclaim(ctx context.Context, name string) {
	log := reqctx.Log(ctx).WithField("name", name)
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil || host.Totalswap == 0 {
		log.Debug("the host has no swap, a suspended guest keeps its memory")
		return
	}
	group := payload(name)
	if d.cgroups.layout == layoutV2 {
		defer d.liftSwapLimit(ctx, group)()
	}
	ctx, cancel := context.WithTimeout(ctx, reclaimTimeout)
	defer cancel()
	held := func() int64 { return d.cgroups.number("memory", group, d.cgroups.memoryFile()) }
	before := held()
	after := before
	// The kernel gives up while pages that it took are still on their way to a slow disk, and version 1 does not say so.
	for idle := 0; after >= worthReclaiming && idle < idleReclaims && ctx.Err() == nil; idle++ {
		if idle > 0 {
			_ = pause(ctx, reclaimPause) // the loop looks at ctx
		}
		d.reclaimOnce(ctx, group, after)
		now := held()
		if after-now >= worthReclaiming {
			idle = 0
		}
		after = min(after, now)
	}
	log.WithField("before", before).WithField("after", after).Info("memory of a suspended guest reclaimed")
}

// reclaimOnce has the kernel reclaim what it can of a group's memory, of which it holds so many bytes.
func (d *Driver) reclaimOnce(ctx context.Context, group string, held int64) {
	file, value := d.cgroups.file("memory", group, "memory.force_empty"), "0"
	if d.cgroups.layout == layoutV2 {
		file, value = d.cgroups.file(unified, group, "memory.reclaim"), strconv.FormatInt(held, 10)
	}
	// A write to these files returns when the kernel has done all it could; only a signal ends it
	// before, so it is a child that writes.
	cmd := exec.CommandContext(ctx, d.o.Executable, commandWrite, file, value)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Run(); err != nil { // EAGAIN, for the most part: it was not everything
		reqctx.Log(ctx).WithError(err).Debug("memory of a suspended guest reclaimed in part")
	}
}

// liftSwapLimit lets a guest's memory go to swap although its flavor has none, until the returned
// function is called. What is in swap by then stays there.
func (d *Driver) liftSwapLimit(ctx context.Context, group string) (restore func()) {
	file := d.cgroups.file(unified, group, "memory.swap.max")
	limit, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte("max"), 0)
	}
	if err != nil {
		return func() {}
	}
	return func() {
		if err := os.WriteFile(file, limit, 0); err != nil { //nolint:gosec // a control file of a group of ours
			reqctx.Log(ctx).WithError(err).Warning("swap limit of a suspended guest not restored; its next start sets it")
		}
	}
}

// writeChild writes a value to a control file and leaves.
func writeChild(args []string) int {
	if len(args) != 2 || !strings.HasPrefix(filepath.Clean(args[0]), cgroupRoot+"/") {
		fmt.Fprintln(os.Stderr, "usage: forkwrite CGROUP-FILE VALUE")
		return exitUsage
	}
	if err := os.WriteFile(args[0], []byte(args[1]), 0); err != nil { //nolint:gosec // looked at above
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	return 0
}
