//go:build functional

package functional

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// TestFailedBuilds: what cannot be built ends in ERROR with a reason that an operator can use, and leaves nothing on the host.
func TestFailedBuilds(t *testing.T) {
	good, err := os.ReadFile(shared.Plane.BusyboxPath())
	require.NoError(t, err)
	ctx := within(t, time.Minute)
	flavor, err := shared.Admin.CreateFlavor(ctx, cloud.NewFlavor{Name: "too-large", RAM: 1 << 30, VCPUs: 1, Disk: 1}, nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, shared.Admin.DeleteFlavor(context.Background(), flavor))
	})

	for _, c := range []struct {
		name   string
		server func(t *testing.T) cloud.NewServer
		reason string // that the fault gives, in lower case
	}{
		{"image that is no root file system", func(t *testing.T) cloud.NewServer {
			t.Helper()
			return cloud.NewServer{Image: uploadImage(t, []byte(strings.Repeat("not a root file system\n", 4096)))}
		}, "image"},
		{"image that is cut off", func(t *testing.T) cloud.NewServer {
			t.Helper()
			return cloud.NewServer{Image: uploadImage(t, good[:len(good)/2])}
		}, "image"},
		{"image with other bytes than its hash says", func(t *testing.T) cloud.NewServer {
			t.Helper()
			id := uploadImage(t, repacked(t, good)) // the agent has the good bytes, and need not fetch them again
			corrupt(t, id)
			return cloud.NewServer{Image: id}
		}, "image"},
		{"flavor that no host has room for", func(t *testing.T) cloud.NewServer {
			t.Helper()
			return cloud.NewServer{Flavor: flavor}
		}, "no valid host"},
		{"network that cannot be bound here", func(t *testing.T) cloud.NewServer {
			t.Helper()
			return cloud.NewServer{Networks: cloud.OnNetwork(unboundNetwork(t))}
		}, "cannot be bound"},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := c.server(t)
			before := snapshot(t)
			id := create(t, want)
			require.Contains(t, strings.ToLower(errored(t, id).Fault.Message), c.reason)
			nothingLeft(t, before)
			remove(t, id)
			noAllocations(t, id)
		})
	}
	boot(t, cloud.NewServer{Name: "after-failures"})
}

// repacked is the same archive in other bytes.
func repacked(t *testing.T, archive []byte) []byte {
	t.Helper()
	in, err := gzip.NewReader(bytes.NewReader(archive))
	require.NoError(t, err)
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	zip.Comment = "repacked"
	_, err = io.Copy(zip, in)
	require.NoError(t, err)
	require.NoError(t, zip.Close())
	return out.Bytes()
}

// corrupt changes the image's bytes behind Glance's back.
func corrupt(t *testing.T, id string) {
	t.Helper()
	path := filepath.Join(shared.Plane.Root, "var/lib/glance/images", id)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	data[len(data)/2] ^= 0xff
	require.NoError(t, os.WriteFile(path, data, 0o600))
}

// unboundNetwork is on a physical network that the host's L2 agent has no link to.
func unboundNetwork(t *testing.T) string {
	t.Helper()
	ctx := within(t, time.Minute)
	var made struct{ Network struct{ ID string } }
	require.NoError(t, shared.Admin.Do(ctx, http.MethodPost, cloud.Network, "/v2.0/networks", map[string]any{"network": map[string]any{
		"name": "unbound", "provider:network_type": "flat", "provider:physical_network": "nowhere",
	}}, &made))
	t.Cleanup(func() {
		require.NoError(t, shared.Admin.Do(context.Background(), http.MethodDelete, cloud.Network, "/v2.0/networks/"+made.Network.ID, nil, nil))
	})
	require.NoError(t, shared.Admin.Do(ctx, http.MethodPost, cloud.Network, "/v2.0/subnets", map[string]any{"subnet": map[string]any{
		"network_id": made.Network.ID, "ip_version": 4, "cidr": "10.78.0.0/24", "enable_dhcp": false,
	}}, nil))
	return made.Network.ID
}
