package compute

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/rpc"
)

// hooked is a captured server with a hook, which answers with these exit statuses; with a negative one it hangs. The
// trail has its calls.
func hooked(t *testing.T, statuses map[string]int) *world {
	t.Helper()
	w := built(t)
	w.guestFile(freezeHooks[0], 0o755)
	w.answers(statuses)
	w.glance.images.add(newImage, "queued", nil)
	return w
}

func (w *world) answers(statuses map[string]int) {
	w.driver.ExecFunc = func(ctx context.Context, _ string, cmd driver.Command) (int, error) {
		what := cmd.Args[1]
		if err := w.trail.do(ctx, "hook", what); err != nil {
			return -1, err
		}
		if cmd.Stderr != nil { // it takes root
			_, err := cmd.Stderr.Write([]byte("said on " + what))
			require.NoError(w.t, err)
		}
		if statuses[what] < 0 {
			<-ctx.Done()
			return -1, fmt.Errorf("%w: %w", driver.ErrTimeout, ctx.Err())
		}
		return statuses[what], nil
	}
}

// guestFile makes a file on the captured server's root disk.
func (w *world) guestFile(name string, mode os.FileMode) {
	w.t.Helper()
	path := filepath.Join(w.roots.dir, uuid, name)
	require.NoError(w.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(w.t, os.WriteFile(path, nil, mode))
}

// imageSays has the captured server's image say something.
func (w *world) imageSays(properties map[string]string) {
	w.t.Helper()
	metadata := w.instance("system_metadata").SystemMetadata
	for name, value := range properties {
		metadata["image_"+name] = &value
	}
	w.nova.Update(uuid, map[string]any{"system_metadata": metadata})
}

// hookCalls are those of the hook and the copies of the root disk, in order.
func (w *world) hookCalls() string {
	var calls []string
	for _, line := range w.trail.all() {
		if what, ok := strings.CutPrefix(line, "hook "); ok {
			calls = append(calls, what)
		} else if strings.HasPrefix(line, "root.copy") {
			calls = append(calls, "copy")
		}
	}
	return strings.Join(calls, " ")
}

// owed is the hook that is to be called once more.
func (w *world) owed() string {
	w.t.Helper()
	rec, _, err := w.record(uuid)
	require.NoError(w.t, err)
	return rec.Quiesced
}

func (w *world) takeSnapshot() {
	w.t.Helper()
	_, err := w.operate("snapshot_instance", object.TaskStateImageSnapshotPending, map[string]any{"image_id": newImage})
	require.NoError(w.t, err)
}

// beginSnapshot takes a snapshot and does not wait for it.
func (w *world) beginSnapshot() rpc.Args {
	w.t.Helper()
	w.nova.Update(uuid, map[string]any{"task_state": object.TaskStateImageSnapshotPending})
	args := rpc.Args{"instance": w.nova.Instance(uuid, "metadata", "system_metadata", "info_cache"), "image_id": novatest.Raw(newImage)}
	_, err := w.handler("snapshot_instance")(user(w.t), args)
	require.NoError(w.t, err)
	return args
}

func TestQuiesce(t *testing.T) {
	t.Parallel()
	required := map[string]string{"os_require_quiesce": "yes"}
	const done, undone = "freeze copy thaw", "freeze thaw copy"
	for _, c := range []struct {
		name     string
		says     map[string]string // by the image
		statuses map[string]int
		prepare  func(w *world)
		want     string
		fault    string // "": none, and an image
	}{
		{name: "hook", want: done},
		{name: "hook, required", says: required, want: done},
		{name: "hook of Red Hat", says: required, prepare: func(w *world) { w.moveHook(freezeHooks[1]) }, want: done},
		{name: "hook behind a link", says: required, prepare: func(w *world) {
			w.moveHook("/srv/hooks/fsfreeze-hook")
			require.NoError(w.t, os.Remove(filepath.Join(w.roots.dir, uuid, "etc/qemu")))
			require.NoError(w.t, os.Symlink("/srv/hooks", filepath.Join(w.roots.dir, uuid, "etc/qemu")))
		}, want: done},
		{name: "hook fails", statuses: map[string]int{"freeze": 3}, want: undone},
		{name: "hook fails, required", says: required, statuses: map[string]int{"freeze": 3}, want: "freeze thaw", fault: ": /etc/qemu/fsfreeze-hook freeze: exit status 3"},
		{name: "hook hangs", statuses: map[string]int{"freeze": -1}, want: undone},
		{name: "hook hangs, required", says: required, statuses: map[string]int{"freeze": -1, "thaw": -1}, want: "freeze thaw", fault: "Error while quiescing instance-0000000d: /etc/qemu/fsfreeze-hook freeze: not done within 2s"},
		{name: "thaw fails", says: required, statuses: map[string]int{"thaw": 1}, want: done},
		{name: "thaw hangs", says: required, statuses: map[string]int{"thaw": -1}, want: done},
		{name: "guest cannot be asked", prepare: func(w *world) { w.driver.Fail("Exec", "", errBoom) }, want: "thaw copy"},
		{name: "no hook", prepare: func(w *world) { w.moveHook("/elsewhere") }, want: "copy"},
		{name: "no hook, required", says: required, prepare: func(w *world) { w.moveHook("/elsewhere") }, fault: "Quiescing is not supported in instance " + uuid + ": the guest has no /etc/qemu/fsfreeze-hook or"},
		{name: "not executable", prepare: func(w *world) { w.modeHook(0o644) }, want: "copy"},
		{name: "not executable, required", says: required, prepare: func(w *world) { w.modeHook(0o644) }, fault: "is not an executable file"},
		{name: "image without agent", says: map[string]string{"hw_qemu_guest_agent": "no"}, want: "copy"},
		{name: "image without agent, required", says: map[string]string{"hw_qemu_guest_agent": "False", "os_require_quiesce": "True"}, fault: "QEMU guest agent is not enabled"},
		{name: "image with agent", says: map[string]string{"hw_qemu_guest_agent": "yes", "os_require_quiesce": "no"}, want: done},
		{name: "paused, required", says: required, prepare: func(w *world) { w.become(driver.PowerStatePaused, "paused") }, want: "copy"},
		{name: "stopped, required", says: required, prepare: func(w *world) { w.become(driver.PowerStateShutdown, "stopped") }},
		{name: "guest does not freeze", prepare: func(w *world) { w.driver.Fail("Pause", "", driver.ErrTimeout) }, want: "freeze thaw", fault: "respond"},
		{name: "guest does not thaw", prepare: func(w *world) { w.driver.Fail("Unpause", "", errBoom) }, want: "freeze copy", fault: "thaw guest"},
		{name: "copy fails", prepare: func(w *world) { w.trail.fail("root.copy", errBoom) }, want: done, fault: "boom"},
		{name: "upload fails", prepare: func(w *world) { w.trail.fail("glance PUT", errBoom, errBoom) }, want: done, fault: "503 Service"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := hooked(t, c.statuses)
			if slices.Contains(slices.Collect(maps.Values(c.statuses)), -1) {
				w.quiesceTimeout = 2 * time.Second // also of calls that do not hang
			}
			w.imageSays(c.says)
			if c.prepare != nil {
				c.prepare(w)
			}
			w.takeSnapshot()
			require.Equal(t, c.want, w.hookCalls())
			if c.fault == "" {
				require.Empty(t, w.nova.Faults())
				require.Equal(t, "active", w.glance.images.field(newImage, "status"))
			} else {
				require.Len(t, w.nova.Faults(), 1)
				require.Contains(t, w.nova.Faults()[0], c.fault)
				require.Empty(t, w.glance.images.ids())
			}
			require.Equal(t, c.name == "guest does not thaw", w.owed() != "")
			w.noJournal()
		})
	}
}

func (w *world) moveHook(to string) {
	w.t.Helper()
	w.guestFile(to, 0o755)
	require.NoError(w.t, os.Remove(filepath.Join(w.roots.dir, uuid, freezeHooks[0])))
}

func (w *world) modeHook(mode os.FileMode) {
	w.t.Helper()
	require.NoError(w.t, os.Chmod(filepath.Join(w.roots.dir, uuid, freezeHooks[0]), mode))
}

func (w *world) become(state driver.PowerState, vmState string) {
	w.driver.SetState(uuid, state)
	w.nova.Update(uuid, map[string]any{"vm_state": vmState})
}

// TestQuiesceForBackup: a backup is a snapshot to the guest; for a shelved server it is shut down.
func TestQuiesceForBackup(t *testing.T) {
	t.Parallel()
	w := hooked(t, nil)
	_, err := w.operate("backup_instance", object.TaskStateImageBackup, map[string]any{"image_id": newImage, "backup_type": "daily", "rotation": 1})
	require.NoError(t, err)
	require.Equal(t, "freeze copy thaw", w.hookCalls())
	require.Empty(t, w.nova.Faults())

	w = hooked(t, nil)
	_, err = w.operate("shelve_instance", object.TaskStateShelving, map[string]any{"image_id": newImage, "clean_shutdown": true})
	require.NoError(t, err)
	require.Empty(t, w.hookCalls())
	require.Empty(t, w.nova.Faults())
}

// TestQuiesceWithoutCopy: what the hook holds is held for as long as the guest is frozen.
func TestQuiesceWithoutCopy(t *testing.T) {
	t.Parallel()
	w := hooked(t, nil)
	w.trail.fail("root.copy", storage.ErrUnsupported)
	release := w.trail.block("glance PUT")
	defer release()
	w.beginSnapshot()
	eventually(t, "upload to begin", func() bool { return w.trail.has("glance PUT /images/" + newImage + "/file") })
	require.Equal(t, "freeze copy", w.hookCalls())
	require.Equal(t, freezeHooks[0], w.owed())
	release()
	w.drain()
	require.Equal(t, "freeze copy thaw", w.hookCalls())
	require.Empty(t, w.owed())
}

// TestQuiesceLeave: a hook does not keep an agent that stops, and is not called for nothing.
func TestQuiesceLeave(t *testing.T) {
	t.Parallel()
	w := hooked(t, map[string]int{"freeze": -1})
	w.beginSnapshot()
	eventually(t, "hook to be called", func() bool { return w.trail.has("hook freeze") })
	w.leave()
	require.Equal(t, "freeze thaw", w.hookCalls())
	require.Empty(t, w.owed())
	require.Contains(t, w.entries(), uuid)
	require.Empty(t, w.nova.Faults())

	w.answers(nil)
	w.restarted()
	w.start()
	require.Equal(t, "freeze copy thaw", w.hookCalls())
	require.Equal(t, "active", w.glance.images.field(newImage, "status"))
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	w.noJournal()
}

// TestQuiesceAfterCrash: every point at which an agent can have ended between the hook's two calls.
func TestQuiesceAfterCrash(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		state   driver.PowerState
		journal bool
		want    string
	}{
		{"while the hook ran", driver.PowerStateRunning, true, "thaw freeze copy thaw"},
		{"while the guest was frozen", driver.PowerStatePaused, true, "thaw freeze copy thaw"},
		{"and nothing of it is known", driver.PowerStatePaused, false, "thaw"},
		{"and the guest has ended since", driver.PowerStateShutdown, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := hooked(t, nil)
			require.NoError(t, w.noteQuiesced(uuid, freezeHooks[0]))
			w.nova.Update(uuid, map[string]any{"task_state": object.TaskStateImagePendingUpload})
			if c.journal {
				args := rpc.Args{"instance": w.nova.Instance(uuid, "metadata", "system_metadata", "info_cache"), "image_id": novatest.Raw(newImage)}
				w.interrupted("snapshot_instance", args, nil)
			}
			w.driver.SetState(uuid, c.state)
			w.restarted()
			w.start()
			require.Equal(t, c.want, w.hookCalls())
			require.Empty(t, w.owed())
			require.Empty(t, w.nova.Faults())
			w.noJournal()
		})
	}
}

// TestQuiesceOvertakenByDelete: neither call of a hook that hangs keeps a delete waiting for its deadline.
func TestQuiesceOvertakenByDelete(t *testing.T) {
	t.Parallel()
	for _, hangs := range []string{"freeze", "thaw"} {
		t.Run(hangs, func(t *testing.T) {
			t.Parallel()
			w := hooked(t, map[string]int{hangs: -1})
			w.hurriedThaw = 2 * time.Second
			w.beginSnapshot()
			eventually(t, "hook to be called", func() bool { return w.trail.has("hook " + hangs) })
			_, err := w.handler("terminate_instance")(user(t), rpc.Args{"instance": w.nova.Instance(uuid, "metadata", "system_metadata", "info_cache")})
			require.NoError(t, err)
			w.drain()
			require.True(t, w.trail.has("hook thaw"))
			require.Equal(t, "true", w.nova.Field(uuid, "deleted"))
			require.Empty(t, w.glance.images.ids())
			w.nothingLeft()
		})
	}
}

// TestHookOutput: the end of it is shown, whatever the guest has made of the file.
func TestHookOutput(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		write func(f *os.File) error
		want  string
	}{
		{"nothing", func(*os.File) error { return nil }, ""},
		{"lines", func(f *os.File) error { _, err := f.WriteString("one\ntwo\n"); return err }, "one\ntwo"},
		{"much", func(f *os.File) error {
			_, err := f.WriteString(strings.Repeat("x", 1<<20) + "end")
			return err
		}, strings.Repeat("x", hookOutputShown-3) + "end"},
		{"no text", func(f *os.File) error { _, err := f.Write([]byte{'a', 0xff, 0, 0xfe, 'b'}); return err }, "ab"},
		{"a hole", func(f *os.File) error { return f.Truncate(1 << 40) }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, err := os.Create(filepath.Join(t.TempDir(), "output"))
			require.NoError(t, err)
			defer f.Close()
			require.NoError(t, c.write(f))
			if diff := cmp.Diff(c.want, endOf(f)); diff != "" {
				t.Error(diff)
			}
		})
	}
	require.Empty(t, endOf(nil))
}
