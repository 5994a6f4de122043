//go:build functional

package functional

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// TestConfigDrive: the drive says the same as the metadata service about the same server, and is the guest's root's alone.
func TestConfigDrive(t *testing.T) {
	net := network(t)
	userData := "#!/bin/sh\necho hello\n"
	server := boot(t, cloud.NewServer{
		Networks: []map[string]string{{"uuid": net, "tag": "front"}}, ConfigDrive: true,
		UserData: base64.StdEncoding.EncodeToString([]byte(userData)),
	})
	read := func(name string) string { return inside(t, server.ID, "cat", "/config-drive/openstack/latest/"+name) }
	require.Equal(t, strings.TrimSpace(userData), read("user_data"))
	for _, document := range []string{"meta_data.json", "network_data.json", "vendor_data.json", "vendor_data2.json"} {
		var served string
		eventually(t, time.Minute, document+" of the metadata service", func(ctx context.Context) (bool, error) {
			var err error
			served, err = metadata(ctx, server.ID, document)
			return err == nil, nil
		})
		var want, got any
		require.NoError(t, json.Unmarshal([]byte(served), &want), served)
		require.NoError(t, json.Unmarshal([]byte(read(document)), &got))
		if document == "meta_data.json" { // these two differ by nature
			drive := got.(map[string]any)
			require.Len(t, drive["random_seed"], len(want.(map[string]any)["random_seed"].(string)))
			require.NotEmpty(t, drive["admin_pass"])
			delete(drive, "admin_pass")
			delete(drive, "random_seed")
			delete(want.(map[string]any), "random_seed")
		}
		require.Equal(t, want, got, document)
	}
	var got map[string]any
	require.NoError(t, json.Unmarshal([]byte(inside(t, server.ID, "cat", "/config-drive/ec2/latest/meta-data.json")), &got))
	for key, path := range map[string]string{"instance-id": "instance-id", "local-ipv4": "local-ipv4", "hostname": "hostname", "instance-type": "instance-type", "ami-id": "ami-id"} {
		text, err := shared.Agent.Exec(within(t, time.Minute), server.ID, "wget", "-q", "-O", "-", "http://169.254.169.254/latest/meta-data/"+path)
		require.NoError(t, err)
		require.Equal(t, strings.TrimSpace(text), got[key], key)
	}

	// What is on the host: the owner's, and nobody else's.
	tree := filepath.Join(shared.Agent.StateDir(), "compute-agent", "configdrive", server.ID, "tree")
	require.NoError(t, filepath.WalkDir(tree, func(path string, e os.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := e.Info()
		require.NoError(t, err)
		require.Zero(t, info.Mode().Perm()&0o277, path)
		require.GreaterOrEqual(t, info.Sys().(*syscall.Stat_t).Uid, uint32(65536), path)
		return nil
	}))
	for _, try := range []string{
		"echo x > /config-drive/openstack/latest/meta_data.json", "mount -o remount,rw,bind /config-drive && touch /config-drive/x",
	} {
		out, _ := shared.Agent.Exec(within(t, time.Minute), server.ID, "sh", "-c", "("+try+") 2>/dev/null && echo done")
		require.NotContains(t, out, "done", try)
	}
	act(t, server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	require.Equal(t, strings.TrimSpace(userData), read("user_data"))
	remove(t, server.ID)
	require.NoDirExists(t, filepath.Dir(tree))
}
