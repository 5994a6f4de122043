package compute

import (
	"encoding/json"
	"errors"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/storage/ephemeral"
	"github.com/compute-agent/compute-agent/rpc"
)

func blank(format string, size int) *object.BlockDeviceMapping {
	b := &object.BlockDeviceMapping{SourceType: "blank", DestinationType: "local", GuestFormat: format}
	if size >= 0 {
		b.VolumeSize = &size
	}
	return b
}

func TestLocalDisks(t *testing.T) {
	t.Parallel()
	m := &Manager{Deps: Deps{Ephemeral: &fakeEphemeral{}}}
	inst := &object.Instance{UUID: uuid, Flavor: &object.Flavor{EphemeralGB: 5, Swap: 1024}}
	type bdms = []*object.BlockDeviceMapping
	image := &object.BlockDeviceMapping{SourceType: "image", DestinationType: "local"}
	for _, c := range []struct {
		name  string
		bdms  bdms
		want  []ephemeral.Disk
		swap  int
		fault string
	}{
		{"the flavor's", bdms{image}, []ephemeral.Disk{{Name: "ephemeral0", SizeGB: 5, Format: "ext4"}}, 1024, ""},
		{"several", bdms{image, blank("", 2), blank("ext4", 3), blank("swap", 512)}, []ephemeral.Disk{
			{Name: "ephemeral0", SizeGB: 2, Format: "ext4"}, {Name: "ephemeral1", SizeGB: 3, Format: "ext4"},
		}, 512, ""},
		{"without sizes", bdms{blank("", -1), blank("swap", -1)}, []ephemeral.Disk{{Name: "ephemeral0", SizeGB: 5, Format: "ext4"}}, 1024, ""},
		{"more than the flavor's", bdms{blank("", 3), blank("", 3)}, nil, 0, "ephemeral disks of 6 GB exceed the flavor's 5"},
		{"the swap of a larger flavor", bdms{blank("", 1), blank("swap", 1025)}, []ephemeral.Disk{{Name: "ephemeral0", SizeGB: 1, Format: "ext4"}}, 1024, ""},
		{"two swaps", bdms{blank("swap", 1), blank("swap", 1)}, nil, 0, "more than one swap disk"},
		{"format", bdms{blank("vfat", 1)}, nil, 0, `no disks with a file system "vfat"; there are ext4 and xfs`},
		{"encrypted", bdms{{SourceType: "blank", DestinationType: "local", Encrypted: true}}, nil, 0, "encrypted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := m.localDisks(inst, c.bdms)
			if c.fault != "" {
				require.ErrorContains(t, err, c.fault)
				return
			}
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(c.want, got.ephemeral))
			require.Equal(t, c.swap, got.swapMB)
		})
	}
	none := &object.Instance{UUID: uuid, Flavor: &object.Flavor{}}
	got, err := m.localDisks(none, nil)
	require.NoError(t, err)
	require.Equal(t, localDisks{}, got)
	_, err = m.localDisks(none, bdms{blank("", -1)})
	require.ErrorContains(t, err, "an ephemeral disk of 0 GB")
	other := &Manager{Deps: m.Deps, opts: Options{DefaultEphemeralFormat: "ntfs"}}
	_, err = other.localDisks(inst, nil)
	require.ErrorContains(t, err, "ntfs")
}

func TestDeviceNames(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][2]string{
		"/dev/sda": {"/dev/sd", "a"}, "/dev/xvdaa": {"/dev/xvd", "aa"}, "/dev/vdb1": {"/dev/vd", "b"}, "sda": {}, "/dev/sd": {}, "": {}, "/dev/nvme0n1": {},
	} {
		prefix, letters, ok := splitDevice(name)
		require.Equal(t, want, [2]string{prefix, letters}, name)
		require.Equal(t, want[0] != "", ok, name)
	}
	for i, want := range map[int]string{0: "a", 1: "b", 25: "z", 26: "aa", 27: "ab", 701: "zz", 702: "aaa"} {
		require.Equal(t, want, deviceLetters(i))
	}
}

// bdmObject is a mapping as the conductor hands it over.
func bdmObject(id int, fields map[string]any) any {
	data := map[string]any{
		"id": id, "uuid": "bdm-" + string(rune('0'+id)), "instance_uuid": uuid, "source_type": "blank", "destination_type": "local",
		"guest_format": nil, "boot_index": -1, "device_name": nil, "volume_size": nil, "delete_on_termination": true, "no_device": false, "encrypted": false,
	}
	maps.Copy(data, fields)
	return map[string]any{"nova_object.name": "BlockDeviceMapping", "nova_object.namespace": "nova", "nova_object.version": "1.21", "nova_object.data": data}
}

// TestBuildWithDisks: the disks are made, named, shown to the guest, and go with it.
func TestBuildWithDisks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	args := w.buildArgs(map[string]any{"block_device_mapping": map[string]any{
		"nova_object.name": "BlockDeviceMappingList", "nova_object.namespace": "nova", "nova_object.version": "1.18",
		"nova_object.data": map[string]any{"objects": []any{
			bdmObject(1, map[string]any{"source_type": "image", "boot_index": 0}),
			bdmObject(2, map[string]any{"volume_size": 1}), bdmObject(3, map[string]any{"volume_size": 2, "guest_format": "ext4"}),
			bdmObject(4, map[string]any{"volume_size": 64, "guest_format": "swap"}),
		}},
	}})
	w.flavor(args, map[string]any{"ephemeral_gb": 3, "swap": 64})
	w.plugEvents("completed")
	_, err := w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	var names []string
	for _, device := range []string{"sda", "sdb", "sdc", "sdd"} {
		names = append(names, `BlockDeviceMapping.save device_name="/dev/`+device+`"`)
	}
	require.Equal(t, names, w.nova.LogOf("BlockDeviceMapping"))
	guest, ok := w.driver.Instance(uuid)
	require.True(t, ok)
	require.Equal(t, []driver.Bind{
		{Source: w.ephemeral.dir + "/" + uuid + "/ephemeral0", Target: "mnt"}, {Source: w.ephemeral.dir + "/" + uuid + "/ephemeral1", Target: "mnt/ephemeral1"},
	}, guest.Spec.Binds)
	require.EqualValues(t, 64<<20, guest.Spec.Limits.SwapBytes)
	require.Equal(t, []ephemeral.Disk{{Name: "ephemeral0", SizeGB: 1, Format: "ext4"}, {Name: "ephemeral1", SizeGB: 2, Format: "ext4"}}, w.ephemeral.disks[uuid].Disks)

	w.trail.clear()
	_, err = w.operate("stop_instance", object.TaskStatePoweringOff, nil)
	require.NoError(t, err)
	require.True(t, w.trail.has("ephemeral.unmount "+uuid))
	_, err = w.operate("start_instance", object.TaskStatePoweringOn, nil)
	require.NoError(t, err)
	require.True(t, w.trail.has("ephemeral.mount "+uuid), "they are there again")
	_, err = w.operate("terminate_instance", object.TaskStateDeleting, nil)
	require.NoError(t, err)
	require.Empty(t, w.ephemeral.disks)
	w.nothingLeft()
}

// TestBuildWithDisksFails: what was made goes again.
func TestBuildWithDisksFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	args := w.buildArgs(nil)
	w.flavor(args, map[string]any{"ephemeral_gb": 3})
	w.trail.fail("ephemeral.mount", errors.New("the disk is full"))
	w.plugEvents("completed")
	_, err := w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	require.Empty(t, w.ephemeral.disks)
	w.nothingLeft()
}

// flavor changes the flavor of a build's server.
func (w *world) flavor(args rpc.Args, change map[string]any) {
	w.t.Helper()
	var inst map[string]any
	require.NoError(w.t, json.Unmarshal(args["instance"], &inst))
	data := inst["nova_object.data"].(map[string]any)
	maps.Copy(data["flavor"].(map[string]any)["nova_object.data"].(map[string]any), change)
	args["instance"] = novatest.Raw(inst)
	w.nova.SetInstance(fieldsOf(w.t, args["instance"]))
}
