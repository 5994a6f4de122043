package rpc_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
	"github.com/compute-agent/compute-agent/rpc/rpctest"
)

func newNotifier(t *testing.T, b *rpctest.Broker, o rpc.NotifierOptions) *rpc.Notifier {
	t.Helper()
	n, err := rpc.NewNotifier(b, o)
	require.NoError(t, err)
	t.Cleanup(n.Close)
	return n
}

func TestNotify(t *testing.T) {
	bubble(t, func(t *testing.T) {
		broker := rpctest.NewBroker()
		n := newNotifier(t, broker, rpc.NotifierOptions{Drivers: []string{"messagingv2", "log"}, Retry: -1})
		require.True(t, n.Enabled())
		ctx := reqctx.With(t.Context(), reqctx.FromMap(map[string]json.RawMessage{
			"auth_token": json.RawMessage(`"token-value"`), "service_catalog": json.RawMessage(`[{"type": "image"}]`),
			"remote_address": json.RawMessage(`"192.0.2.1"`), "request_id": json.RawMessage(`"req-1"`),
			"timestamp": json.RawMessage(`"2001-01-01T00:00:00.000000"`), "roles": json.RawMessage(`["member"]`), "secret_extra": json.RawMessage(`"s"`),
		}))
		time.Sleep(1500 * time.Millisecond)
		require.NoError(t, n.Notify(ctx, nil, "INFO", "compute.node1", "compute.instance.power_off.end", map[string]any{"instance_id": "x"}))
		require.NoError(t, n.Notify(ctx, []string{"a", "b"}, "ERROR", "nova-compute:node1", "compute.exception", nil))
		synctest.Wait()
		sent := broker.Sent()
		require.Len(t, sent, 3)
		for i, name := range []string{"notifications.info", "a.error", "b.error"} {
			require.Equal(t, name, sent[i].RoutingKey)
			require.Equal(t, &rpc.Queue{Name: name, Kind: rpc.QueueTopic, Exchange: sent[i].Exchange, RoutingKey: name}, sent[i].Queue)
			require.Equal(t, rpc.Exchange{Name: "nova", Kind: rpc.ExchangeTopic}, sent[i].Exchange)
			require.False(t, sent[i].Mandatory)
			require.Zero(t, sent[i].Attempts)
			require.NotContains(t, string(sent[i].Body), "token-value")
		}
		members, err := rpctest.Members(sent[0].Body)
		require.NoError(t, err)
		for key, want := range map[string]string{
			"publisher_id": `"compute.node1"`, "event_type": `"compute.instance.power_off.end"`, "priority": `"INFO"`,
			"payload": `{"instance_id": "x"}`, "timestamp": `"2000-01-01 00:00:01.500000"`,
			"_context_auth_token": `null`, "_context_service_catalog": `[]`, "_context_remote_address": `null`,
			"_context_request_id": `"req-1"`, "_context_roles": `["member"]`, "_context_timestamp": `"2000-01-01T00:00:01.500000"`,
			"_context_is_admin": `false`,
		} {
			require.JSONEq(t, want, string(members[key]), key)
		}
		require.Regexp(t, `^"[0-9a-f-]{36}"$`, string(members["message_id"]))
		require.Regexp(t, `^"[0-9a-f]{32}"$`, string(members["_unique_id"]))
		require.NotContains(t, members, "_context_secret_extra")
		count := 0
		for key := range members {
			if strings.HasPrefix(key, "_context_") {
				count++
			}
		}
		require.Equal(t, 25, count)
	})
}

func TestNotifyDrivers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, drivers := range [][]string{nil, {""}, {"noop"}} {
			broker := rpctest.NewBroker()
			n := newNotifier(t, broker, rpc.NotifierOptions{Drivers: drivers})
			require.False(t, n.Enabled())
			require.NoError(t, n.Notify(t.Context(), nil, "INFO", "p", "e", func() {}))
			require.Empty(t, broker.Sent())
		}
		_, err := rpc.NewNotifier(nil, rpc.NotifierOptions{Drivers: []string{"smoke"}})
		require.ErrorContains(t, err, `"smoke"`)

		broker := rpctest.NewBroker()
		n := newNotifier(t, broker, rpc.NotifierOptions{Drivers: []string{"messaging"}, Retry: 2})
		require.NoError(t, n.Notify(t.Context(), nil, "INFO", "p", "e", 1))
		synctest.Wait() // at a full second: no fraction
		require.Equal(t, 3, broker.Sent()[0].Attempts)
		var bare map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(broker.Sent()[0].Body, &bare))
		require.JSONEq(t, `"2000-01-01 00:00:00"`, string(bare["timestamp"]))
		require.NotContains(t, bare, "oslo.version")
		require.Error(t, n.Notify(t.Context(), nil, "INFO", "p", "e", func() {}))
	})
}

func TestNotifyNeverWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		broker := rpctest.NewBroker()
		var broken atomic.Bool
		release := make(chan struct{})
		broker.SetFault(func(rpc.Message) error {
			<-release
			if broken.Load() {
				return errors.New("broker is gone")
			}
			return nil
		})
		n := newNotifier(t, broker, rpc.NotifierOptions{Drivers: []string{"messagingv2"}, QueueSize: 2})
		start := time.Now()
		var errs []error
		for range 10 {
			errs = append(errs, n.Notify(t.Context(), nil, "INFO", "p", "e", 1))
			synctest.Wait()
		}
		require.Zero(t, time.Since(start))
		require.NoError(t, errors.Join(errs[:3]...)) // one on its way, two queued
		for _, err := range errs[3:] {
			require.ErrorIs(t, err, rpc.ErrQueueFull)
		}
		close(release)
		n.Close()
		require.Len(t, broker.Sent(), 3)
		require.ErrorIs(t, n.Notify(t.Context(), nil, "INFO", "p", "e", 1), rpc.ErrClosed)
	})
}

// stalled is a transport that takes nothing until the context ends.
type stalled struct{ rpc.Transport }

func (stalled) Publish(ctx context.Context, _ rpc.Message) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestNotifierCloseIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n, err := rpc.NewNotifier(stalled{}, rpc.NotifierOptions{Drivers: []string{"messagingv2"}})
		require.NoError(t, err)
		for range 5 {
			require.NoError(t, n.Notify(t.Context(), nil, "INFO", "p", "e", 1))
		}
		start := time.Now()
		n.Close()
		require.Equal(t, 5*time.Second, time.Since(start))
	})
}
