package compute

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/hostshare"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// fakeShares is a ShareStore that keeps names only.
type fakeShares struct {
	*trail

	dir  string
	have []string

	mu      sync.Mutex // guards mounted
	mounted map[string]bool
}

func (s *fakeShares) Path(id, name string) string { return filepath.Join(s.dir, id, name) }

func (s *fakeShares) Check(names []string) error {
	for _, name := range names {
		if !slices.Contains(s.have, name) {
			return fmt.Errorf("%w: no %s", hostshare.ErrUnavailable, name)
		}
	}
	return nil
}

func (s *fakeShares) Mount(id string, ids storage.IDRange, names []string) error {
	if err := s.Check(names); err != nil || len(names) == 0 {
		return err
	}
	for _, name := range names {
		if err := os.MkdirAll(s.Path(id, name), 0o755); err != nil {
			return err
		}
	}
	if err := s.do(context.Background(), "share.mount", fmt.Sprintf("%s %s %d", id, strings.Join(names, ","), ids.Base)); err != nil {
		return err
	}
	s.setMounted(id, true)
	return nil
}

func (s *fakeShares) setMounted(id string, mounted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounted == nil {
		s.mounted = map[string]bool{}
	}
	s.mounted[id] = mounted
}

func (s *fakeShares) isMounted(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mounted[id]
}

func (s *fakeShares) Unmount(id string) error {
	if _, err := os.Stat(filepath.Join(s.dir, id)); err != nil {
		return nil //nolint:nilerr // it has none
	}
	if err := s.do(context.Background(), "share.unmount", id); err != nil {
		return err
	}
	s.setMounted(id, false)
	return nil
}

func (s *fakeShares) Remove(id string) error {
	if err := s.Unmount(id); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(s.dir, id))
}

// sharing is a change of a flavor that gives its servers directories.
func sharing(specs map[string]any) map[string]any { return map[string]any{"extra_specs": specs} }

var withData = sharing(map[string]any{"lxc:share:data": "/srv/data"})

// sharedWith are the places and the names of the directories that the guest has.
func (w *world) sharedWith() map[string]string {
	w.t.Helper()
	guest, ok := w.driver.Instance(uuid)
	require.True(w.t, ok)
	got := map[string]string{}
	for _, b := range guest.Spec.Binds {
		require.False(w.t, b.ReadOnly)
		require.Equal(w.t, filepath.Join(w.shares.dir, uuid), filepath.Dir(b.Source))
		got[b.Target] = filepath.Base(b.Source)
	}
	return got
}

// TestShares: a directory of the host is mounted before every start of the guest, and not while it is off.
func TestShares(t *testing.T) {
	t.Parallel()
	w := builtWith(t, sharing(map[string]any{"lxc:share:data": "/srv/data", "lxc:share:tools": "/opt/tools"}), nil)
	both := map[string]string{"srv/data": "data", "opt/tools": "tools"}
	require.Equal(t, both, w.sharedWith())
	mounted := "share.mount " + uuid + " data,tools 1000000"
	for _, o := range []struct {
		method, task string
		args         map[string]any
		want         []string
	}{
		{"stop_instance", object.TaskStatePoweringOff, nil, []string{"share.unmount " + uuid}},
		{"start_instance", object.TaskStatePoweringOn, nil, []string{mounted}},
		{"reboot_instance", "rebooting_hard", map[string]any{"reboot_type": "HARD"}, []string{"share.unmount " + uuid, mounted}},
	} {
		w.trail.clear()
		_, err := w.operate(o.method, o.task, o.args)
		require.NoError(t, err)
		for _, line := range o.want {
			require.True(t, w.trail.has(line), "%s: %s", o.method, line)
		}
		require.Equal(t, both, w.sharedWith())
	}
	w.restarted()
	w.trail.clear()
	_, err := w.operate("reboot_instance", "rebooting_hard", map[string]any{"reboot_type": "HARD"})
	require.NoError(t, err)
	require.True(t, w.trail.has(mounted), "the next agent knows of it")

	w.glance.images.add(otherImage, "active", nil)
	w.trail.clear()
	_, err = w.operate("rescue_instance", object.TaskStateRescuing, map[string]any{"rescue_image_ref": otherImage})
	require.NoError(t, err)
	require.False(t, w.trail.has(mounted), "a rescue system has none")
	guest, _ := w.driver.Instance(uuid)
	require.Len(t, guest.Spec.Binds, 1)
	_, err = w.operate("unrescue_instance", object.TaskStateUnrescuing, nil)
	require.NoError(t, err)
	require.Equal(t, both, w.sharedWith())
	require.True(t, w.trail.has(mounted))

	_, err = w.operate("terminate_instance", object.TaskStateDeleting, nil)
	require.NoError(t, err)
	require.NoDirExists(t, filepath.Join(w.shares.dir, uuid))
	w.nothingLeft()
}

// TestShareOfAnotherHost: a host without the directory gives the build to the next one; a share that no host can give ends it.
func TestShareOfAnotherHost(t *testing.T) {
	t.Parallel()
	for place, want := range map[string]string{"/srv": "building/scheduling/-", "/proc/self": "error/-/-"} {
		w := newWorld(t)
		args := w.buildArgs(nil)
		w.flavor(args, sharing(map[string]any{"lxc:share:elsewhere": place}))
		w.plugEvents("completed")
		_, err := w.call(user(t), "build_and_run_instance", args)
		require.NoError(t, err)
		require.Equal(t, want, w.nova.States(uuid))
		require.False(t, w.trail.has("root.create "+uuid), "before anything is made")
		if place == "/srv" {
			require.Len(t, w.nova.Casts("build_instances"), 1)
		} else {
			require.Contains(t, w.nova.Faults()[0], "/proc/self")
		}
		w.nothingLeft()
	}
}

// TestMoveWithShares: the host that a server comes to gives it the directory; one without refuses before anything moves.
func TestMoveWithShares(t *testing.T) {
	source, destination := twoHosts(t)
	wanted := source.flavorOf(map[string]any{"id": 99, "memory_mb": 128, "extra_specs": withData["extra_specs"]})
	destination.shares.have = nil
	args := prepare(source, destination, wanted)
	_, err := destination.handler("prep_resize")(user(t), args)
	require.NoError(t, err)
	eventually(t, "prep_resize to end", func() bool { return !destination.journal.Has(uuid) })
	require.Equal(t, "active/-/"+testHost, source.nova.States(uuid), "the server stays as it is")
	require.Empty(t, source.nova.Casts("resize_instance"))
	require.Contains(t, source.nova.Faults()[0], "no data")
	_, known, err := destination.record(uuid)
	require.NoError(t, err)
	require.False(t, known)

	destination.shares.have = []string{"data"}
	destination.step("prep_resize", prepare(source, destination, wanted))
	source.next("resize_instance")
	destination.next("finish_resize")
	require.Equal(t, "resized/-/"+otherHost, source.nova.States(uuid))
	require.Equal(t, map[string]string{"srv/data": "data"}, destination.sharedWith())
	require.True(t, destination.trail.has(fmt.Sprintf("share.mount %s data %d", uuid, os.Getuid())))
}

// TestResizeToOtherShares: on one host the guest is stopped for it, and a revert gives it back what it had.
func TestResizeToOtherShares(t *testing.T) {
	t.Parallel()
	w := builtWith(t, withData, nil)
	w.step("prep_resize", prepare(w, w, w.flavorOf(map[string]any{"id": 99, "extra_specs": map[string]any{"lxc:share:tools": "/opt"}})))
	w.next("resize_instance")
	w.next("finish_resize")
	require.Equal(t, "resized/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, map[string]string{"opt": "tools"}, w.sharedWith())
	require.NoDirExists(t, w.shares.Path(uuid, "data"))
	guest, _ := w.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, guest.State)

	w.step("revert_resize", revertArgs(w))
	w.next("finish_revert_resize")
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, map[string]string{"srv/data": "data"}, w.sharedWith())
	guest, _ = w.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, guest.State)
}
