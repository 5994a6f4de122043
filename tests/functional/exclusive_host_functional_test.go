//go:build functional

package functional

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// TestExclusiveHost: a server has all processors of a host that takes no second one, until the first is gone. The scheduler goes by the number
// of servers that the agent reports.
func TestExclusiveHost(t *testing.T) {
	ctx := within(t, time.Minute)
	_, inventories, err := shared.Admin.Provider(ctx, shared.Host)
	require.NoError(t, err)
	vcpus := inventories["VCPU"].Total
	flavor, err := shared.Admin.CreateFlavor(ctx, cloud.NewFlavor{Name: shared.Host + "-exclusive", RAM: 64, VCPUs: vcpus}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, shared.Admin.DeleteFlavor(context.Background(), flavor)) })
	aggregate(t, shared.Host+"-exclusive", map[string]string{"max_instances_per_host": "1"})
	onHost := func(name string) string {
		t.Helper()
		id, err := shared.Admin.CreateServer(within(t, time.Minute), cloud.NewServer{
			Name: "exclusive-" + name, Image: shared.Busybox, Flavor: flavor, Networks: "none", Host: shared.Host,
		})
		require.NoError(t, err)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
			defer cancel()
			require.NoError(t, shared.Admin.DeleteServer(ctx, id))
			require.NoError(t, shared.Admin.WaitGone(ctx, id))
		})
		return id
	}

	empty(t)
	first := onHost("first")
	statusIn(t, time.Minute, first, "ACTIVE")
	require.Equal(t, strconv.Itoa(vcpus), inside(t, first, "nproc"))
	refused := errored(t, onHost("second"))
	require.Contains(t, refused.Fault.Message, "No valid host")
	require.Empty(t, refused.Host)
	statusIn(t, time.Minute, first, "ACTIVE")

	remove(t, first)
	empty(t)
	statusIn(t, time.Minute, onHost("third"), "ACTIVE")
}

// empty waits until the scheduler can know that there is no server on this host.
func empty(t *testing.T) {
	t.Helper()
	eventually(t, 30*time.Second, "the host to be empty", func(ctx context.Context) (bool, error) {
		hypervisors, err := shared.Admin.Hypervisors(ctx)
		return slices.ContainsFunc(hypervisors, func(h cloud.Hypervisor) bool { return h.Hostname == shared.Host && h.RunningVMs == 0 }), err
	})
}

// aggregate makes one of this host, until the test ends.
func aggregate(t *testing.T, name string, metadata map[string]string) {
	t.Helper()
	do := func(method, path string, body, answer any) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute) // not the test's: it is a clean-up, too
		defer cancel()
		require.NoError(t, shared.Admin.Do(ctx, method, cloud.Compute, "/os-aggregates"+path, body, answer))
	}
	var made struct{ Aggregate struct{ ID int } }
	do(http.MethodPost, "", map[string]any{"aggregate": map[string]string{"name": name}}, &made)
	path := fmt.Sprintf("/%d", made.Aggregate.ID)
	t.Cleanup(func() { do(http.MethodDelete, path, nil, nil) })
	do(http.MethodPost, path+"/action", map[string]any{"add_host": map[string]string{"host": shared.Host}}, nil)
	t.Cleanup(func() {
		do(http.MethodPost, path+"/action", map[string]any{"remove_host": map[string]string{"host": shared.Host}}, nil)
	})
	do(http.MethodPost, path+"/action", map[string]any{"set_metadata": map[string]any{"metadata": metadata}}, nil)
}
