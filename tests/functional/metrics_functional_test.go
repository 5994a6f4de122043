//go:build functional

package functional

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
)

// freeAddress is one that nobody listens at, and no connection has as its own: those have ports from 32768 on.
func freeAddress(t *testing.T) string {
	t.Helper()
	const first, last = 21000, 22000
	var config net.ListenConfig
	var err error
	for port := first; port < last; port++ {
		var free net.Listener
		if free, err = config.Listen(t.Context(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			require.NoError(t, free.Close())
			return free.Addr().String()
		}
	}
	require.NoError(t, err)
	return ""
}

// TestInstanceMetrics: a scrape has a server by its names, and no more once it is gone.
func TestInstanceMetrics(t *testing.T) {
	address := freeAddress(t)
	withOptions(t, shared, "[lxc]\nmetrics_listen = "+address+"\n")
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	scrape := func() map[string]string {
		t.Helper()
		request, err := http.NewRequestWithContext(within(t, 10*time.Second), http.MethodGet, "http://"+address+"/metrics/instances", nil)
		require.NoError(t, err)
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, response.StatusCode, string(body))
		series := map[string]string{}
		for line := range strings.Lines(string(body)) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok && strings.Contains(name, server.ID) {
				series[name+"}"] = value
			}
		}
		return series
	}
	var who struct {
		Server struct {
			Tenant string `json:"tenant_id"`
		}
	}
	require.NoError(t, shared.Admin.Do(within(t, 10*time.Second), http.MethodGet, cloud.Compute, "/servers/"+server.ID, nil, &who))
	ports, err := shared.Admin.Ports(within(t, 10*time.Second), "device_id="+server.ID)
	require.NoError(t, err)
	require.Len(t, ports, 1)

	flavor := controlplane.NanoFlavor
	got := scrape()
	value := func(name string, more ...string) string {
		t.Helper()
		labels := append([]string{`flavor="` + flavor + `"`, `name="` + server.InstanceName + `"`}, more...)
		key := fmt.Sprintf(`compute_agent_instance_%s{%s,project="%s",uuid="%s"}`, name, strings.Join(labels, ","), who.Server.Tenant, server.ID)
		require.Contains(t, got, key)
		return got[key]
	}
	require.Equal(t, "1", value("up"))
	require.Equal(t, "0", value("oom_kills_total"))
	for _, name := range []string{"cpu_seconds_total", "memory_used_bytes", "memory_limit_bytes", "tasks", "disk_reads_total", "disk_writes_total"} {
		require.NotEmpty(t, value(name), name)
	}
	for _, name := range []string{"network_receive_bytes_total", "network_transmit_packets_total"} {
		require.NotEqual(t, "0", value(name, `port="`+ports[0].ID+`"`), "it answered to ping")
	}
	act(t, server.ID, "os-stop", nil, "SHUTOFF")
	got = scrape()
	require.Equal(t, "0", value("up"))
	require.Len(t, got, 1)
	remove(t, server.ID)
	eventually(t, 10*time.Second, "the series to end", func(context.Context) (bool, error) { return len(scrape()) == 0, nil })
}
