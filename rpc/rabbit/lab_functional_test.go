//go:build functional

package rabbit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net"
	"os"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/rpc"
)

// brokerURL is the broker of these tests: AMQP_TEST_URL, or the usual local one.
func brokerURL() string {
	if u := os.Getenv("AMQP_TEST_URL"); u != "" {
		return u
	}
	return "rabbit://guest:guest@127.0.0.1:5672/"
}

// labOptions gives options for the test broker; without one the test fails if
// functional tests are demanded, and is skipped otherwise.
func labOptions(t testing.TB) Options {
	t.Helper()
	o, err := ParseURL(brokerURL())
	require.NoError(t, err)
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(t.Context(), "tcp", o.Hosts[0].Address())
	if err != nil {
		if os.Getenv("COMPUTE_AGENT_FUNCTIONAL") == "1" {
			t.Fatalf("need a RabbitMQ broker at %s: %v", o.Hosts[0].Address(), err)
		}
		t.Skipf("need a RabbitMQ broker at %s: %v", o.Hosts[0].Address(), err)
	}
	require.NoError(t, conn.Close())
	o.ReconnectDelay = 50 * time.Millisecond
	o.RetryInterval = 100 * time.Millisecond
	o.RetryBackoff = 100 * time.Millisecond
	o.IntervalMax = 500 * time.Millisecond
	o.TransientTTL = 20 * time.Second // reply queues of tests go soon
	return o
}

func newLab(t testing.TB, o Options) *Transport {
	t.Helper()
	tr, err := New(o)
	require.NoError(t, err)
	t.Cleanup(tr.Close)
	return tr
}

// unique names the exchange or topic of one test.
func unique(t testing.TB) string {
	t.Helper()
	b := make([]byte, 4)
	_, err := rand.Read(b)
	require.NoError(t, err)
	name := "ca_test_" + hex.EncodeToString(b)
	t.Log("exchange and topic:", name)
	return name
}

// admin runs something on a plain channel beside the transport under test.
func admin(t testing.TB, f func(ch *amqp.Channel) error) error {
	t.Helper()
	o, err := ParseURL(brokerURL())
	require.NoError(t, err)
	h := o.Hosts[0]
	conn, err := amqp.DialConfig("amqp://"+h.Address(), amqp.Config{
		SASL:  []amqp.Authentication{&amqp.PlainAuth{Username: h.User, Password: h.Password.Reveal()}},
		Vhost: o.VirtualHost, Locale: "en_US", Heartbeat: 10 * time.Second,
	})
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	require.NoError(t, err)
	return f(ch)
}

// sweep deletes what a test has left on the broker.
func sweep(t testing.TB, exchanges, queues []string) {
	t.Helper()
	t.Cleanup(func() {
		for _, q := range queues {
			_ = admin(t, func(ch *amqp.Channel) error {
				_, err := ch.QueueDelete(q, false, false, false)
				return err
			})
		}
		for _, e := range exchanges {
			_ = admin(t, func(ch *amqp.Channel) error { return ch.ExchangeDelete(e, false, false) })
		}
	})
}

// startServer runs a server until the end of the test.
func startServer(t testing.TB, tr rpc.Transport, exchange, host string, e rpc.Endpoint) *rpc.Server {
	t.Helper()
	s := rpc.NewServer(tr, rpc.ServerOptions{Exchange: exchange, Topic: exchange, Host: host}, e)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
	})
	select {
	case <-s.Ready():
	case <-time.After(30 * time.Second):
		t.Fatal("server is not ready")
	}
	return s
}

func newClient(t testing.TB, tr rpc.Transport, exchange string) *rpc.Client {
	t.Helper()
	c := rpc.NewClient(tr, rpc.ClientOptions{Exchange: exchange, Timeout: time.Minute})
	t.Cleanup(c.Close)
	return c
}

func echo(_ context.Context, args rpc.Args) (any, error) { return args["arg"], nil }

func echoEndpoint() rpc.Endpoint {
	return rpc.Endpoint{Version: "1.5", Methods: map[string]rpc.Handler{"echo": echo}}
}
