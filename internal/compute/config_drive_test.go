package compute

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// needRoot skips a test that gives files to a guest's ids.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func (w *world) buildWithDrive(change map[string]any) {
	w.t.Helper()
	args := w.buildArgs(change)
	var inst map[string]any
	require.NoError(w.t, json.Unmarshal(args["instance"], &inst))
	inst["nova_object.data"].(map[string]any)["config_drive"] = "True"
	raw, err := json.Marshal(inst)
	require.NoError(w.t, err)
	args["instance"] = raw
	w.plugEvents("completed")
	_, err = w.call(user(w.t), "build_and_run_instance", args)
	require.NoError(w.t, err)
}

func TestBuildWithConfigDrive(t *testing.T) {
	t.Parallel()
	needRoot(t)
	w := newWorld(t, func(o *Options) { o.ConfigDrive.DHCPDomain = "novalocal" })
	w.buildWithDrive(map[string]any{
		"admin_password": "s3cret", "injected_files": [][]string{{"/etc/motd", "aGkK"}},
		"requested_networks": requested(map[string]any{"network_id": networkID, "tag": "front"}),
	})
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid), "%v", w.nova.Faults())
	i, _ := w.driver.Instance(uuid)
	drive := w.drives.Path(uuid)
	require.Equal(t, []driver.Bind{{Source: drive, Target: "config-drive", ReadOnly: true}}, i.Spec.Binds)
	raw, err := os.ReadFile(filepath.Join(drive, "openstack/latest/meta_data.json"))
	require.NoError(t, err, "mounted before the start")
	var meta map[string]any
	require.NoError(t, json.Unmarshal(raw, &meta))
	require.Equal(t, uuid, meta["uuid"])
	require.Equal(t, "cap1", meta["name"])
	require.Equal(t, "cap1.novalocal", meta["hostname"])
	require.Equal(t, "s3cret", meta["admin_pass"])
	require.Equal(t, "nova", meta["availability_zone"])
	require.Contains(t, meta["public_keys"], "demo-key")
	require.Equal(t, []any{map[string]any{"path": "/etc/motd", "content_path": "/content/0000"}}, meta["files"])
	require.Equal(t, []any{"front"}, meta["devices"].([]any)[0].(map[string]any)["tags"])
	content, err := os.ReadFile(filepath.Join(drive, "openstack/content/0000"))
	require.NoError(t, err)
	require.Equal(t, "hi\n", string(content))
	network, err := os.ReadFile(filepath.Join(drive, "openstack/latest/network_data.json"))
	require.NoError(t, err)
	require.Contains(t, string(network), "tapport-1")

	_, err = w.operate("stop_instance", object.TaskStatePoweringOff, map[string]any{"clean_shutdown": false})
	require.NoError(t, err)
	require.NoFileExists(t, filepath.Join(drive, "openstack/latest/meta_data.json"))
	_, err = w.operate("start_instance", object.TaskStatePoweringOn, nil)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(drive, "openstack/latest/meta_data.json"))
	_, err = w.operate("terminate_instance", object.TaskStateDeleting, map[string]any{"bdms": nil})
	require.NoError(t, err)
	require.NoDirExists(t, filepath.Dir(drive))
	w.nothingLeft()
}

// TestForcedConfigDrive: the row tells of a drive that the operator wants, or the image.
func TestForcedConfigDrive(t *testing.T) {
	t.Parallel()
	needRoot(t)
	w := newWorld(t, func(o *Options) { o.ConfigDrive.Force = true })
	w.build(nil)
	require.Equal(t, "True", w.nova.Field(uuid, "config_drive"))
	require.True(t, w.drives.Exists(uuid))
	_, err := w.operate("terminate_instance", object.TaskStateDeleting, map[string]any{"bdms": nil})
	require.NoError(t, err)
	w.nothingLeft()
}

func TestBuildWithoutConfigDrive(t *testing.T) {
	t.Parallel()
	w := built(t)
	i, _ := w.driver.Instance(uuid)
	require.Empty(t, i.Spec.Binds)
	require.False(t, w.drives.Exists(uuid))
}

func TestConfigDriveFailures(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for name, change := range map[string]struct {
		args    map[string]any
		options func(o *Options)
	}{
		"files that are not base64":         {map[string]any{"injected_files": [][]string{{"/x", "%%"}}}, func(*Options) {}},
		"vendor data that is missing":       {nil, func(o *Options) { o.ConfigDrive.VendordataFile = "/nowhere/vendor.json" }},
		"vendor data that cannot be parsed": {nil, func(o *Options) { o.ConfigDrive.VendordataFile = "/proc/version" }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, change.options, func(o *Options) { o.ConfigDrive.VendordataProviders = []string{"StaticJSON"} })
			w.buildWithDrive(change.args)
			require.NotEqual(t, "active/-/"+testHost, w.nova.States(uuid))
			require.False(t, w.drives.Exists(uuid))
			w.nothingLeft()
		})
	}
}
