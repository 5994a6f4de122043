//go:build functional

package rabbit

import (
	"crypto/tls"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

func TestCallBetweenTransports(t *testing.T) {
	o := labOptions(t)
	name := unique(t)
	sweep(t, []string{name}, []string{name, name + ".node1"})
	startServer(t, newLab(t, o), name, "node1", echoEndpoint())
	client := newClient(t, newLab(t, o), name)
	for _, server := range []string{"", "node1"} {
		got, err := client.Call(t.Context(), rpc.Target{Topic: name, Server: server, Version: "1.0"}, "echo", map[string]any{"arg": "grüße"})
		require.NoError(t, err)
		require.JSONEq(t, `"grüße"`, string(got))
	}
}

func TestConductorPing(t *testing.T) {
	client := newClient(t, newLab(t, labOptions(t)), "nova")
	ctx := reqctx.With(t.Context(), reqctx.Admin())
	got, err := client.Call(ctx, rpc.Target{Topic: "conductor", Namespace: "baseapi", Version: "1.0", Timeout: time.Minute},
		"ping", map[string]any{"arg": "1.21 GigaWatts"})
	require.NoError(t, err)
	require.JSONEq(t, `{"service": "conductor", "arg": "1.21 GigaWatts"}`, string(got))
	got, err = client.Call(ctx, rpc.Target{Topic: "conductor", Version: "3.0", Timeout: time.Minute}, "object_class_action_versions", map[string]any{
		"objname": "Service", "objmethod": "get_minimum_version", "object_versions": map[string]string{"Service": "1.22"},
		"args": []any{"nova-conductor"}, "kwargs": map[string]any{},
	})
	require.NoError(t, err)
	var version int
	require.NoError(t, json.Unmarshal(got, &version))
	require.Positive(t, version)
	t.Logf("minimum service version of nova-conductor: %d", version)
}

func BenchmarkCall(b *testing.B) {
	o := labOptions(b)
	name := unique(b)
	sweep(b, []string{name}, []string{name, name + ".node1"})
	startServer(b, newLab(b, o), name, "node1", echoEndpoint())
	client := newClient(b, newLab(b, o), name)
	target := rpc.Target{Topic: name, Server: "node1"}
	for b.Loop() {
		if _, err := client.Call(b.Context(), target, "echo", map[string]any{"arg": 1}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestTLSBroker(t *testing.T) {
	ca := newCA(t)
	_, o := newProxyOn(t, tls.NewListener(listen(t), ca.serverConfig(t, "localhost", true)), labOptions(t))
	o.Hosts[0].Name = "localhost"
	o.TLS = TLS{Enabled: true, CAFile: ca.file, VerifyHostname: true}
	o.TLS.CertFile, o.TLS.KeyFile = ca.issue(t, "client.example")
	tr := newLab(t, o)
	for range 3 {
		require.NoError(t, tr.Publish(t.Context(), rpc.Message{RoutingKey: "nowhere", Body: []byte(`{}`)}))
	}
}
