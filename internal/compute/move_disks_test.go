package compute

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/storage/ephemeral"
	"github.com/compute-agent/compute-agent/rpc"
)

func ext4Disk(i, sizeGB int) ephemeral.Disk {
	return ephemeral.Disk{Name: ephemeralName(i), SizeGB: sizeGB, Format: "ext4"}
}

// prepareDisks is prepare for a server whose flavor has changes, of which prepare knows nothing.
func prepareDisks(source, destination *world, was, wanted map[string]any) rpc.Args {
	args := prepare(source, destination, source.flavorOf(wanted))
	source.flavor(args, was)
	return args
}

// put writes a file onto a server's disk, as its guest does, and content reads one.
func (w *world) put(disk int, name, content string) {
	w.t.Helper()
	dir := filepath.Join(w.ephemeral.dir, uuid, ephemeralName(disk))
	require.NoError(w.t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o640))
}

func (w *world) content(disk int, name string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.ephemeral.dir, uuid, ephemeralName(disk), name))
	require.NoError(w.t, err)
	return string(b)
}

// binds are where the guest sees its disks.
func (w *world) binds() []string {
	w.t.Helper()
	got, ok := w.driver.Instance(uuid)
	require.True(w.t, ok)
	var targets []string
	for _, b := range got.Spec.Binds {
		require.DirExists(w.t, b.Source)
		targets = append(targets, b.Target)
	}
	return targets
}

// cut are the mappings of a user who cut a flavor's disk in two.
var cut = []any{
	bdmObject(1, map[string]any{"source_type": "image", "boot_index": 0}),
	bdmObject(2, map[string]any{"volume_size": 1}), bdmObject(3, map[string]any{"volume_size": 2}),
}

// whole is the mapping that the API makes of a flavor's disk.
func whole(sizeGB int) []any {
	return []any{
		bdmObject(1, map[string]any{"source_type": "image", "boot_index": 0, "device_name": "/dev/sda"}),
		bdmObject(2, map[string]any{"volume_size": sizeGB, "device_name": "/dev/sdb"}),
	}
}

// mapped are the sizes of the mappings of ephemeral disks.
func (w *world) mapped() []int {
	w.t.Helper()
	bdms, err := w.Conductor.BDMs(w.t.Context(), uuid)
	require.NoError(w.t, err)
	var sizes []int
	ephemerals, _ := blankDisks(bdms)
	for _, b := range ephemerals {
		sizes = append(sizes, *b.VolumeSize)
	}
	return sizes
}

// TestResizeSwap: the mapping of the swap follows the flavor, so that a rebuild gives what the resize gave; a revert takes it back.
func TestResizeSwap(t *testing.T) {
	for _, c := range []struct {
		to             int
		want, reverted []int
	}{{128, []int{128}, []int{64}}, {32, []int{32}, []int{64}}, {0, nil, nil}} {
		was := map[string]any{"swap": 64}
		source, destination := twoHostsWith(t, was, []any{
			bdmObject(1, map[string]any{"source_type": "image", "boot_index": 0, "device_name": "/dev/sda"}),
			bdmObject(2, map[string]any{"guest_format": "swap", "volume_size": 64, "device_name": "/dev/sdb"}),
		})
		swaps := func() (sizes []int) {
			bdms, err := source.Conductor.BDMs(t.Context(), uuid)
			require.NoError(t, err)
			_, found := blankDisks(bdms)
			for _, b := range found {
				sizes = append(sizes, *b.VolumeSize)
			}
			return sizes
		}
		destination.step("prep_resize", prepareDisks(source, destination, was, map[string]any{"id": 99, "swap": c.to}))
		source.next("resize_instance")
		destination.next("finish_resize")
		require.Equal(t, c.want, swaps())
		guest, _ := destination.driver.Instance(uuid)
		require.Equal(t, int64(c.to)<<20, guest.Spec.Limits.SwapBytes)
		source.nova.Update(uuid, map[string]any{"task_state": "resize_reverting"})
		destination.step("revert_resize", source.moveArgs("metadata", "system_metadata", "info_cache", "flavor", "old_flavor", "new_flavor"))
		source.next("finish_revert_resize")
		require.Equal(t, c.reverted, swaps())
	}
}

func TestMoveWithDisk(t *testing.T) {
	was := map[string]any{"ephemeral_gb": 3}
	source, destination := twoHostsWith(t, was, nil)
	destination.Manager.opts.DefaultEphemeralFormat = "xfs" // of disks that are new here
	source.put(0, "early", "1")
	source.put(0, "gone", "2")
	destination.step("prep_resize", prepareDisks(source, destination, was, map[string]any{"id": 99, "ephemeral_gb": 3}))
	source.put(0, "late", "3")
	require.NoError(t, os.Remove(filepath.Join(source.ephemeral.dir, uuid, "ephemeral0/gone")))
	source.next("resize_instance")
	require.True(t, source.trail.has("ephemeral.unmount "+uuid))
	destination.next("finish_resize")
	require.Equal(t, "resized/-/"+otherHost, source.nova.States(uuid))
	require.Equal(t, []ephemeral.Disk{ext4Disk(0, 3)}, destination.ephemeral.of(uuid))
	require.Equal(t, []string{"mnt"}, destination.binds())
	require.Equal(t, []string{"1", "3"}, []string{destination.content(0, "early"), destination.content(0, "late")})
	require.NoFileExists(t, filepath.Join(destination.ephemeral.dir, uuid, "ephemeral0/gone"))
}

func TestMoveWithDiskIsConfirmedOrReverted(t *testing.T) {
	was := map[string]any{"ephemeral_gb": 3}
	for _, confirm := range []bool{true, false} {
		source, destination := twoHostsWith(t, was, whole(3))
		source.put(0, "file", "1")
		destination.step("prep_resize", prepareDisks(source, destination, was, map[string]any{"id": 99, "ephemeral_gb": 5}))
		source.next("resize_instance")
		destination.next("finish_resize")
		require.Equal(t, []ephemeral.Disk{ext4Disk(0, 5)}, destination.ephemeral.of(uuid), "as large as the new flavor has it")
		require.Equal(t, []int{5}, source.mapped())
		destination.put(0, "new", "2")
		if confirm {
			source.step("confirm_resize", source.moveArgs("system_metadata"))
			require.Empty(t, source.ephemeral.of(uuid))
			require.Equal(t, []string{"1", "2"}, []string{destination.content(0, "file"), destination.content(0, "new")})
			continue
		}
		source.nova.Update(uuid, map[string]any{"task_state": "resize_reverting"})
		destination.step("revert_resize", source.moveArgs("metadata", "system_metadata", "info_cache", "flavor", "old_flavor", "new_flavor"))
		require.Empty(t, destination.ephemeral.of(uuid))
		source.next("finish_revert_resize")
		require.Equal(t, "active/-/"+testHost, source.nova.States(uuid))
		require.Equal(t, []ephemeral.Disk{ext4Disk(0, 3)}, source.ephemeral.of(uuid))
		require.Equal(t, []int{3}, source.mapped())
		require.Equal(t, "1", source.content(0, "file"))
		require.NoFileExists(t, filepath.Join(source.ephemeral.dir, uuid, "ephemeral0/new"))
	}
}

// moveArgs are the arguments of a step that the API or a host sends.
func (w *world) moveArgs(attrs ...string) rpc.Args {
	w.t.Helper()
	return rpc.Args{
		"instance":     w.nova.Instance(uuid, attrs...),
		"migration":    novatest.Object("Migration", w.nova.Migration(migrationUUID)),
		"request_spec": novatest.Raw(nil),
	}
}

// TestDisksUnderAnotherFlavor: what a flavor makes of the disks of a server.
func TestDisksUnderAnotherFlavor(t *testing.T) {
	for _, c := range []struct {
		name     string
		was, now int
		bdms     []any
		want     []ephemeral.Disk
		fault    string
	}{
		{"larger", 3, 5, whole(3), []ephemeral.Disk{ext4Disk(0, 5)}, ""},
		{"larger, added by a resize before", 3, 5, nil, []ephemeral.Disk{ext4Disk(0, 5)}, ""},
		{"the same", 3, 3, whole(3), []ephemeral.Disk{ext4Disk(0, 3)}, ""},
		{"the user's one keeps its size", 4, 9, whole(3), []ephemeral.Disk{ext4Disk(0, 3)}, ""},
		{"none and one", 0, 2, nil, []ephemeral.Disk{ext4Disk(0, 2)}, ""},
		{"none", 0, 0, nil, nil, ""},
		{"the user's keep their size", 4, 9, cut, []ephemeral.Disk{ext4Disk(0, 1), ext4Disk(1, 2)}, ""},
		{"the user's leave room", 4, 3, cut, []ephemeral.Disk{ext4Disk(0, 1), ext4Disk(1, 2)}, ""},
		{"the user's one leaves room", 4, 3, whole(3), []ephemeral.Disk{ext4Disk(0, 3)}, ""},
		{"smaller, mapped", 3, 2, whole(3), nil, "the ephemeral disk of 3 GB cannot be made smaller"},
		{"one and none, mapped", 3, 0, whole(3), nil, "the ephemeral disk of 3 GB cannot be made smaller"},
		{"smaller", 3, 2, nil, nil, "the ephemeral disk of 3 GB cannot be made smaller"},
		{"one and none", 3, 0, nil, nil, "the ephemeral disk of 3 GB cannot be made smaller"},
		{"the user's are too much", 4, 2, cut, nil, "ephemeral disks of 3 GB exceed the flavor's 2; disks cannot be made smaller"},
	} {
		for _, here := range []bool{false, true} {
			name := c.name
			if here {
				name += " on one host"
			}
			t.Run(name, func(t *testing.T) {
				was := map[string]any{"ephemeral_gb": c.was}
				source, destination := twoHostsWith(t, was, c.bdms)
				if here {
					destination = source
				}
				destination.step("prep_resize", prepareDisks(source, destination, was, map[string]any{"id": 99, "ephemeral_gb": c.now}))
				if c.fault != "" {
					require.Equal(t, "active/-/"+testHost, source.nova.States(uuid))
					require.Len(t, source.nova.Faults(), 1)
					require.Contains(t, source.nova.Faults()[0], c.fault)
					require.Contains(t, source.nova.Faults()[0], "Resize error")
					return
				}
				source.next("resize_instance")
				destination.next("finish_resize")
				require.Equal(t, "resized/-/"+destination.opts.Host, source.nova.States(uuid))
				require.Equal(t, c.want, destination.ephemeral.of(uuid))
				rec, _, err := destination.record(uuid)
				require.NoError(t, err)
				require.Equal(t, c.want, rec.Ephemeral)
				if c.bdms != nil {
					var sizes []int
					for _, d := range c.want {
						sizes = append(sizes, d.SizeGB)
					}
					require.Equal(t, sizes, source.mapped())
				}
				require.Len(t, destination.binds(), len(c.want))
				got, _ := destination.driver.Instance(uuid)
				require.Equal(t, driver.PowerStateRunning, got.State)
				stopped := slices.Contains(destination.driver.Calls(), "Stop "+uuid)
				require.Equal(t, here && c.was == 0 && c.now > 0, stopped, "only a new disk stops a guest")
			})
		}
	}
}

// TestDiskOnOneHost: what a resize added is taken away by a revert, and only when it can be.
func TestDiskOnOneHost(t *testing.T) {
	for _, c := range []struct {
		was, now, grown int
		bdms            []any
		want            []ephemeral.Disk
	}{
		{3, 5, 5, whole(3), []ephemeral.Disk{ext4Disk(0, 3)}},
		{3, 5, 5, nil, []ephemeral.Disk{ext4Disk(0, 3)}},
		{0, 2, 2, nil, nil},
		{9, 5, 5, whole(5), []ephemeral.Disk{ext4Disk(0, 5)}}, // the user's
		{4, 9, 3, whole(3), []ephemeral.Disk{ext4Disk(0, 3)}}, // the user's
	} {
		was := map[string]any{"ephemeral_gb": c.was}
		w := builtWith(t, was, c.bdms, ownIDs(t))
		w.step("prep_resize", prepareDisks(w, w, was, map[string]any{"id": 99, "ephemeral_gb": c.now}))
		w.next("resize_instance")
		w.next("finish_resize")
		require.Equal(t, []ephemeral.Disk{ext4Disk(0, c.grown)}, w.ephemeral.of(uuid))
		w.nova.Update(uuid, map[string]any{"task_state": "resize_reverting"})
		w.step("revert_resize", w.moveArgs("metadata", "system_metadata", "info_cache", "flavor", "old_flavor", "new_flavor"))
		w.next("finish_revert_resize")
		require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
		require.Equal(t, c.want, w.ephemeral.of(uuid))
		require.Len(t, w.binds(), len(c.want))
		if c.bdms != nil {
			require.Equal(t, []int{c.want[0].SizeGB}, w.mapped())
		}
		got, _ := w.driver.Instance(uuid)
		require.Equal(t, driver.PowerStateRunning, got.State)
	}
}

// TestRevertThatDoesNotFit leaves the server as it is.
func TestRevertThatDoesNotFit(t *testing.T) {
	was := map[string]any{"ephemeral_gb": 3}
	w := builtWith(t, was, nil, ownIDs(t))
	w.step("prep_resize", prepareDisks(w, w, was, map[string]any{"id": 99, "ephemeral_gb": 5}))
	w.next("resize_instance")
	w.next("finish_resize")
	w.ephemeral.used = 3000 << 20
	w.nova.Update(uuid, map[string]any{"task_state": "resize_reverting"})
	w.step("revert_resize", w.moveArgs("metadata", "system_metadata", "info_cache", "flavor", "old_flavor", "new_flavor"))
	require.Equal(t, "resized/-/"+testHost, w.nova.States(uuid))
	require.Contains(t, w.nova.Faults()[0], "the ephemeral disk holds 3000 MB by now, which is too much for the old size of 3 GB")
	require.Equal(t, []ephemeral.Disk{ext4Disk(0, 5)}, w.ephemeral.of(uuid))
}

// TestSourceWithoutDisks: an agent of before ephemeral disks moved offers the root disk alone.
func TestSourceWithoutDisks(t *testing.T) {
	was := map[string]any{"ephemeral_gb": 3}
	source, destination := twoHostsWith(t, was, nil)
	rec, _, err := source.record(uuid)
	require.NoError(t, err)
	rec.Ephemeral = nil
	require.NoError(t, source.saveRecord(rec))
	destination.step("prep_resize", prepareDisks(source, destination, was, map[string]any{"id": 99, "ephemeral_gb": 3}))
	destination.drain()
	source.endOffer(uuid) // it would expire
	require.Equal(t, "active/-/"+testHost, source.nova.States(uuid))
	require.Contains(t, source.nova.Faults()[0], "the source offers 0 ephemeral disks of a server with 1")
	local, err := destination.localInstances(t.Context())
	require.NoError(t, err)
	require.Empty(t, local)
}

// TestNewDiskAfterACrash: a finish_resize that was cut off while it gave the guest a disk is done again.
func TestNewDiskAfterACrash(t *testing.T) {
	was := map[string]any{"ephemeral_gb": 0}
	w := builtWith(t, was, nil, ownIDs(t))
	w.step("prep_resize", prepareDisks(w, w, was, map[string]any{"id": 99, "ephemeral_gb": 2}))
	w.next("resize_instance")
	rec, _, err := w.record(uuid)
	require.NoError(t, err)
	require.NoError(t, w.powerOff(t.Context(), uuid, 0))
	rec.Ephemeral = []ephemeral.Disk{ext4Disk(0, 2)}
	_, err = w.makeDisks(t.Context(), uuid, rec.Root.IDs, rec.Ephemeral)
	require.NoError(t, err)
	w.next("finish_resize")
	require.Equal(t, "resized/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, []string{"mnt"}, w.binds())
	got, _ := w.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, got.State)
}

// TestNewDiskThatKeepsTheGuestFromStarting goes again, and the guest runs as before.
func TestNewDiskThatKeepsTheGuestFromStarting(t *testing.T) {
	was := map[string]any{"ephemeral_gb": 0}
	w := builtWith(t, was, nil, ownIDs(t))
	w.step("prep_resize", prepareDisks(w, w, was, map[string]any{"id": 99, "ephemeral_gb": 2}))
	w.next("resize_instance")
	w.driver.Fail("Start", uuid, errBoom)
	w.next("finish_resize")
	require.Contains(t, w.nova.Faults()[0], errBoom.Error())
	require.Empty(t, w.ephemeral.of(uuid))
	require.Empty(t, w.binds())
	rec, _, err := w.record(uuid)
	require.NoError(t, err)
	require.Empty(t, rec.Ephemeral)
	got, _ := w.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, got.State)
}

// TestEvacuationMakesNewDisks: nothing of the old host's is there to have.
func TestEvacuationMakesNewDisks(t *testing.T) {
	source, destination := twoHostsWith(t, map[string]any{"ephemeral_gb": 4}, cut)
	source.glance.images.add(imageID, "active", nil)
	source.put(0, "file", "1")
	_, err := destination.call(user(t), "rebuild_instance", evacuate(source, destination))
	require.NoError(t, err)
	require.Equal(t, "active/-/"+otherHost, source.nova.States(uuid))
	require.Equal(t, []ephemeral.Disk{ext4Disk(0, 1), ext4Disk(1, 2)}, destination.ephemeral.of(uuid))
	require.Equal(t, []string{"mnt", "mnt/ephemeral1"}, destination.binds())
	require.NoFileExists(t, filepath.Join(destination.ephemeral.dir, uuid, "ephemeral0/file"))
	source.restarted()
	require.NoError(t, source.InitHost(t.Context()))
	source.drain()
	require.Empty(t, source.ephemeral.of(uuid))
}

// TestUnshelvedServerHasNewDisks: the image of a shelved server is its root disk alone, as with every driver of nova's.
func TestUnshelvedServerHasNewDisks(t *testing.T) {
	w := builtWith(t, map[string]any{"ephemeral_gb": 4}, cut)
	w.glance.images.add(newImage, "queued", nil)
	w.put(0, "file", "1")
	_, err := w.operate("shelve_instance", object.TaskStateShelving, map[string]any{"image_id": newImage, "clean_shutdown": true, "accel_uuids": []string{}})
	require.NoError(t, err)
	require.Equal(t, "shelved_offloaded/-/-", w.nova.States(uuid))
	require.Empty(t, w.ephemeral.of(uuid))
	w.unshelve(t)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, []ephemeral.Disk{ext4Disk(0, 1), ext4Disk(1, 2)}, w.ephemeral.of(uuid))
	require.Equal(t, []string{"mnt", "mnt/ephemeral1"}, w.binds())
	require.NoFileExists(t, filepath.Join(w.ephemeral.dir, uuid, "ephemeral0/file"))
}
