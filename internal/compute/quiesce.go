package compute

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/guestfile"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// freezeHooks are where a guest has the program that qemu-guest-agent calls with "freeze" before it freezes the
// file systems, and with "thaw" after it has thawed them (qga/commands-posix.c:execute_fsfreeze_hook): QEMU's own
// place, which Debian leaves as it is, and that of Red Hat's package.
var freezeHooks = []string{"/etc/qemu/fsfreeze-hook", "/etc/qemu-ga/fsfreeze-hook"}

const (
	// quiesceTimeout bounds each call of a hook. A database writes back what it has in memory meanwhile: as long as
	// a guest has to shut down by itself (shutdown_timeout's default).
	quiesceTimeout = time.Minute
	// hurriedThaw bounds it when the instance is to be deleted, which waits for it.
	hurriedThaw = 5 * time.Second
	// hookOutputSize bounds what a hook can write.
	hookOutputSize = "64k"
	// hookOutputShown is how much of a hook's output is logged: its end says what went wrong.
	hookOutputShown = 1024
)

// quiesce has the guest's own hook prepare what runs in it for a snapshot, as nova-compute does by way of
// qemu-guest-agent, and tells whether unquiesce has to be called. The image's os_require_quiesce makes it an error if
// that is not possible (nova/virt/libvirt/driver.py:_live_snapshot, which yet overlooks a hook that fails); else the
// snapshot goes on without.
func (m *Manager) quiesce(ctx context.Context, inst *object.Instance, rec record) (bool, error) {
	err := m.callFreezeHook(ctx, inst, rec)
	if err == nil {
		return true, nil
	}
	// A hook that has failed may have done half of its work: as libvirt does, it is told to undo that.
	if undone := m.unquiesce(ctx, rec.UUID); undone != nil {
		return false, errors.Join(err, undone)
	}
	log := reqctx.Log(ctx).WithError(err)
	switch required, _ := imageFlag(inst, "os_require_quiesce"); {
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case required || errors.Is(err, errLeaving):
		return false, err
	case exception.Is(err, "Invalid"): // most guests are not made for it
		log.Debug("guest not quiesced for a snapshot")
	default:
		log.Warning("guest not quiesced for a snapshot, which goes on without")
	}
	return false, nil
}

// callFreezeHook calls the hook, if the guest has one. Nova's errors are those of _can_quiesce, and of _set_quiesced
// for a hook that fails. A libvirt guest needs hw_qemu_guest_agent=yes to have the channel to its agent at all. Here
// there is no channel, and whoever puts a hook into a guest wants it called: only an image that says no is heeded.
func (m *Manager) callFreezeHook(ctx context.Context, inst *object.Instance, rec record) error {
	if agent, says := imageFlag(inst, "hw_qemu_guest_agent"); says && !agent {
		return exception.New("QemuGuestAgentNotEnabled", nil)
	}
	hook, err := m.freezeHook(ctx, rec)
	if err == nil && hook == "" {
		why := "the guest has no " + strings.Join(freezeHooks, " or ")
		return exception.WithCause("InstanceQuiesceNotSupported", "Quiescing is not supported in instance "+inst.UUID+": "+why,
			map[string]any{"instance_id": inst.UUID}, nil)
	}
	if err == nil {
		err = m.await(ctx, func(ctx context.Context) error {
			if err := m.noteQuiesced(rec.UUID, hook); err != nil {
				return err
			}
			return m.callHook(ctx, rec.UUID, hook, "freeze")
		})
	}
	if err == nil || errors.Is(err, errLeaving) {
		return err
	}
	return exception.New("InternalError", map[string]any{"err": fmt.Sprintf("Error while quiescing %s: %v", rec.Name, err)}).Because(err)
}

// freezeHook is the name of the guest's hook, "" if there is none. It is looked for on the root disk as the host has
// it mounted: what the guest mounts over it, which may be a file system of its own that never answers, is not there.
func (m *Manager) freezeHook(ctx context.Context, rec record) (string, error) {
	path, err := m.Roots.Mount(ctx, rec.Root)
	if err != nil {
		return "", fmt.Errorf("mount root disk: %w", err)
	}
	root, err := guestfile.OpenDisk(path, guestfile.IDs{Base: rec.Root.IDs.Base, Count: rec.Root.IDs.Size})
	if err != nil {
		return "", fmt.Errorf("open root disk: %w", err)
	}
	defer root.Close() //nolint:errcheck // nothing was written
	var errs []error
	for _, hook := range freezeHooks {
		info, err := root.Stat(hook)
		switch {
		case err == nil && info.Mode.IsRegular() && info.Mode&0o111 != 0:
			return hook, nil
		case err == nil:
			errs = append(errs, fmt.Errorf("%s of the guest is not an executable file", hook))
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	return "", errors.Join(errs...)
}

// unquiesce calls the hook once more that quiesce has called, also after a crash of the agent in between, and does
// nothing if there is none. It fails only if the host does: a hook that does not do its work is the guest's affair.
func (m *Manager) unquiesce(ctx context.Context, uuid string) error {
	rec, ok, err := m.record(uuid)
	if err != nil || !ok || rec.Quiesced == "" {
		return err
	}
	// Not ctx: what was begun in the guest has to end in any case.
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(m.hurriedThaw, cancel) })()
	state, err := m.powerState(lasting, uuid)
	switch {
	case err != nil:
		return err
	case state == driver.PowerStateRunning:
		if err := m.callHook(lasting, uuid, rec.Quiesced, "thaw"); err != nil {
			reqctx.Log(ctx).WithError(err).Error("hook of the guest has not ended what it began for a snapshot; what it has stopped in the guest may stand still")
		}
	case !isOff(state):
		return nil // it could not be unfrozen: whoever does it calls this again
	}
	return m.noteQuiesced(uuid, "")
}

// noteQuiesced records the hook that has to be called once more.
func (m *Manager) noteQuiesced(uuid, hook string) error {
	rec, ok, err := m.record(uuid)
	if err != nil || !ok {
		return err
	}
	rec.Quiesced = hook
	return m.saveRecord(rec)
}

// callHook runs a hook of a guest as the guest's root.
func (m *Manager) callHook(ctx context.Context, uuid, hook, what string) error {
	ctx, cancel := context.WithTimeout(ctx, m.quiesceTimeout)
	defer cancel()
	log := reqctx.Log(ctx).WithField("hook", hook+" "+what)
	cmd := driver.Command{Args: []string{hook, what}}
	output, err := newHookOutput()
	if err != nil {
		log.WithError(err).Warning("output of a hook is not kept")
	} else {
		defer output.Close() //nolint:errcheck // memory
		cmd.Stdout, cmd.Stderr = output, output
	}
	began := time.Now()
	status, err := m.Driver.Exec(ctx, uuid, cmd)
	log = log.WithField("elapsed", time.Since(began).Seconds())
	switch {
	case err == nil && status == 0:
		log.Info("hook of the guest called for a snapshot")
		return nil
	case err == nil:
		err = fmt.Errorf("%s %s: exit status %d", hook, what, status)
	case errors.Is(err, driver.ErrTimeout) && errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("%s %s: not done within %s: %w", hook, what, m.quiesceTimeout, err)
	default:
		err = fmt.Errorf("%s %s: %w", hook, what, err)
	}
	if text := endOf(output); text != "" {
		log.WithField("output", text).Warning("hook of the guest failed, and wrote")
	}
	return err
}

// newHookOutput makes a file for what a hook writes. qemu-guest-agent gives it /dev/null, which neither keeps a hook waiting nor
// ends before what it leaves running in the guest; a pipe does both. This is a file in a file system of its own, without a name, that
// is full soon: a hook that goes on writing is told so, and the memory is neither the host's nor the guest's to lose.
func newHookOutput() (*os.File, error) {
	dir, err := mount.Detached("tmpfs", mount.Option{Key: "size", Value: hookOutputSize})
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // it lives on with the file
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_APPEND|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	output := os.NewFile(uintptr(fd), "output of fsfreeze-hook")
	if err := output.Chmod(0o666); err != nil { // for a script that opens /dev/stderr, whatever the agent's umask
		return nil, errors.Join(err, output.Close())
	}
	return output, nil
}

// endOf is the end of a hook's output, which the guest may have made into anything; nil: there is none.
func endOf(output *os.File) string {
	if output == nil {
		return ""
	}
	info, err := output.Stat()
	if err != nil {
		return ""
	}
	end := make([]byte, min(info.Size(), hookOutputShown))
	n, _ := output.ReadAt(end, info.Size()-int64(len(end))) // what cannot be read is not shown
	return strings.TrimSpace(strings.ReplaceAll(strings.ToValidUTF8(string(end[:n]), ""), "\x00", ""))
}

// imageFlag is a property of the instance's image that is yes or no, and whether the image has it
// (nova/objects/fields.py:FlexibleBoolean).
func imageFlag(inst *object.Instance, property string) (value, has bool) {
	switch text := inst.System("image_" + property); strings.ToLower(strings.TrimSpace(text)) {
	case "":
		return false, false
	case "1", "t", "true", "on", "y", "yes":
		return true, true
	}
	return false, true
}
