//go:build functional

package functional

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// containsAll tells whether a line of the text has all the parts.
func containsAll(text string, parts ...string) bool {
	for line := range strings.Lines(text) {
		if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
			return true
		}
	}
	return false
}

// serviceState is what nova says of this host's service.
func serviceState(t *testing.T) string {
	t.Helper()
	services, err := shared.Admin.ComputeServices(within(t, 10*time.Second), "nova-compute")
	require.NoError(t, err)
	for _, s := range services {
		if s.Host == shared.Host {
			return s.State
		}
	}
	return ""
}

// TestPersonality: the files are on the config drive, as with nova-compute where nothing is written into the root disk.
func TestPersonality(t *testing.T) {
	server := boot(t, cloud.NewServer{Networks: "none", ConfigDrive: true, Personality: []cloud.File{
		{Path: "/etc/banner", Contents: []byte("hello\n")}, {Path: "/etc/second", Contents: []byte{0, 1, 0xff}},
	}})
	var meta struct {
		Files []struct {
			Path    string
			Content string `json:"content_path"`
		}
	}
	require.NoError(t, json.Unmarshal([]byte(inside(t, server.ID, "cat", "/config-drive/openstack/latest/meta_data.json")), &meta))
	require.Len(t, meta.Files, 2)
	for i, want := range []struct{ path, sum string }{
		{"/etc/banner", "b1946ac92492d2347c6235b4d2611184"}, {"/etc/second", "ffbb8cd5a232b7d906904533e9609f48"},
	} {
		require.Equal(t, want.path, meta.Files[i].Path)
		sum, _, _ := strings.Cut(inside(t, server.ID, "md5sum", "/config-drive/openstack"+meta.Files[i].Content), " ")
		require.Equal(t, want.sum, sum, want.path)
	}
}

// TestRefusals asks for what there is no way to through the API of one cell without volumes and with no live migration under way: by nova's own
// client, and of a volume's new size as Cinder tells it. The server runs on as it is.
func TestRefusals(t *testing.T) {
	server := boot(t, cloud.NewServer{Networks: "none"})
	since := booted(t, server.ID)
	refusals, err := shared.Plane.Refusals(within(t, 2*time.Minute), server.ID)
	require.NoError(t, err)
	var got []string
	for _, r := range refusals {
		t.Logf("%+v", r)
		got = append(got, r.Method+" "+r.Error)
	}
	require.Equal(t, []string{
		"reserve_block_device_name InvalidVolume", "detach_volume NotImplementedError", "swap_volume NotImplementedError",
		"prep_snapshot_based_resize_at_dest MigrationPreCheckError",
		"check_can_live_migrate_source MigrationPreCheckError", "pre_live_migration MigrationPreCheckError",
		"live_migration MigrationPreCheckError", "post_live_migration_at_destination MigrationPreCheckError",
		"rollback_live_migration_at_destination MigrationPreCheckError", "drop_move_claim_at_destination NotImplementedError",
		"live_migration_force_complete NotImplementedError", "live_migration_abort NotImplementedError",
		" ",
	}, got)
	require.Equal(t, "0", refusals[len(refusals)-1].Text, "no volume is noted")

	event := map[string]string{"name": "volume-extended", "server_uuid": server.ID, "tag": shared.Network} // any id
	body := map[string]any{"events": []any{event}}
	require.NoError(t, shared.Admin.DoAt(within(t, time.Minute), "compute 2.51", http.MethodPost, cloud.Compute, "/os-server-external-events", body, nil))
	for _, method := range []string{
		"detach_volume", "swap_volume", "prep_snapshot_based_resize_at_dest", "live_migration_force_complete", "live_migration_abort", "extend_volume",
	} {
		require.Equal(t, []actionEvent{{Event: "compute_" + method, Result: "Error", Host: shared.Host}}, lastAction(t, server.ID, method))
	}
	trace := sql(t, "SELECT e.traceback FROM nova.instance_actions_events e JOIN nova.instance_actions a ON a.id = e.action_id "+
		"WHERE a.instance_uuid = '"+server.ID+"' AND e.event = 'compute_extend_volume'")
	require.Equal(t, "nova.exception.ExtendVolumeNotSupported: Volume size extension is not supported by the hypervisor.", trace)
	fault := sql(t, "SELECT message FROM nova.instance_faults WHERE instance_uuid = '"+server.ID+"' ORDER BY id DESC LIMIT 1")
	require.Equal(t, "Volume size extension is not supported by the hypervisor.", fault, "of ExtendVolumeNotSupported")
	require.Equal(t, server, statusIn(t, 10*time.Second, server.ID, "ACTIVE"))
	require.Equal(t, since, booted(t, server.ID))
}

// TestBuildsThatAreRefused end in ERROR with the reason, at once and without a second host.
func TestBuildsThatAreRefused(t *testing.T) {
	own := map[string]any{"boot_index": 0, "uuid": shared.Busybox, "source_type": "image", "destination_type": "local", "delete_on_termination": true}
	for _, c := range []struct {
		name   string
		server cloud.NewServer
		reason string
	}{
		{"boot from volume", cloud.NewServer{BlockDevices: []map[string]any{
			{"boot_index": 0, "uuid": shared.Busybox, "source_type": "image", "destination_type": "volume", "volume_size": 1},
		}}, "volumes are not supported"},
		{"new volume", cloud.NewServer{BlockDevices: []map[string]any{
			own, {"boot_index": -1, "source_type": "blank", "destination_type": "volume", "volume_size": 1},
		}}, "volumes are not supported"},
		{"trusted certificates, image not signed", cloud.NewServer{TrustedCerts: []string{"a-certificate"}}, "Missing property: img_signature"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := snapshot(t)
			id := create(t, c.server)
			require.Contains(t, errored(t, id).Fault.Message, c.reason)
			nothingLeft(t, before)
			remove(t, id)
			noAllocations(t, id)
		})
	}
}

// TestHostIsDisabled: the scheduler hears of it by a trait, and an operator's word that a host is down counts at once.
func TestHostIsDisabled(t *testing.T) {
	traits := func() []string {
		provider, _, err := shared.Admin.Provider(within(t, 10*time.Second), shared.Host)
		require.NoError(t, err)
		var answer struct{ Traits []string }
		require.NoError(t, shared.Admin.Do(within(t, 10*time.Second), http.MethodGet, cloud.Placement, "/resource_providers/"+provider+"/traits", nil, &answer))
		return answer.Traits
	}
	require.NotContains(t, traits(), "COMPUTE_STATUS_DISABLED")
	t.Run("disabled", func(t *testing.T) {
		disable(t, shared.Host)
		require.Contains(t, traits(), "COMPUTE_STATUS_DISABLED")
	})
	require.NotContains(t, traits(), "COMPUTE_STATUS_DISABLED")
}
