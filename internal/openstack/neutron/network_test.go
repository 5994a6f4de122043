package neutron

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/openstack/ostest"
)

// TestAutoAllocateOnce: Neutron, when it is slow, is not asked for a second topology while it makes the first one.
func TestAutoAllocateOnce(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	cloud := ostest.NewFake(t, map[string]http.Handler{"network": http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		<-r.Context().Done()
	})})
	client := New(Options{Service: cloud.Pool.Service(openstack.ServiceOptions{
		Section: "neutron", Session: cloud.Pool.Session(cloud.Auth("neutron", "neutron")), Types: []string{"network"},
		Timeout: 2 * time.Second, ConnectRetries: 3, ConnectRetryDelay: time.Millisecond,
	})})
	_, err := client.autoAllocate(t.Context(), projectID)
	require.ErrorIs(t, err, openstack.ErrUnreachable)
	require.Equal(t, int32(1), calls.Load())
}
