package rpc_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/rpc"
	"github.com/compute-agent/compute-agent/rpc/rpctest"
)

func TestClientTimeout(t *testing.T) {
	bubble(t, func(t *testing.T) {
		client := rpc.NewClient(rpctest.NewBroker(), rpc.ClientOptions{Timeout: 7 * time.Second})
		defer client.Close()
		start := time.Now()
		_, err := client.Call(t.Context(), rpc.Target{Topic: "conductor"}, "m", nil)
		require.ErrorIs(t, err, rpc.ErrTimeout)
		require.EqualError(t, err, "call m of conductor: no reply in time")
		require.Equal(t, 7*time.Second, time.Since(start))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = client.Call(ctx, rpc.Target{Topic: "conductor"}, "m", nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, rpc.ErrTimeout)
	})
}

func TestClientLateReplyAndHeartbeatWithoutMonitor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t, rpc.ServerOptions{}, map[string]rpc.Handler{"m": func(context.Context, rpc.Args) (any, error) {
			time.Sleep(10 * time.Second)
			return 1, nil
		}})
		target := compute
		target.Timeout = 5 * time.Second
		_, err := l.client.Call(t.Context(), target, "m", nil)
		require.ErrorIs(t, err, rpc.ErrTimeout)
		time.Sleep(time.Minute) // the late reply is dropped
		target.Timeout = 20 * time.Second
		got, err := l.client.Call(t.Context(), target, "m", nil)
		require.NoError(t, err)
		require.JSONEq(t, `1`, string(got))
	})
}

func TestClientConcurrent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t, rpc.ServerOptions{}, map[string]rpc.Handler{"echo": func(_ context.Context, a rpc.Args) (any, error) { return a["n"], nil }})
		var calls sync.WaitGroup
		for n := range 200 {
			calls.Go(func() {
				got, err := l.client.Call(t.Context(), compute, "echo", map[string]any{"n": n})
				if err != nil || string(got) != strconv.Itoa(n) {
					t.Errorf("call %d: %s %v", n, got, err)
				}
			})
		}
		calls.Wait()
	})
}

func TestClientErrors(t *testing.T) {
	bubble(t, func(t *testing.T) {
		broker := rpctest.NewBroker()
		client := rpc.NewClient(broker, rpc.ClientOptions{})
		target := rpc.Target{Topic: "conductor", Server: "h"}
		_, err := client.Call(t.Context(), target, "m", map[string]any{"bad": func() {}})
		require.ErrorContains(t, err, "call m of conductor.h: encode")
		require.Error(t, client.Cast(t.Context(), target, "m", map[string]any{"bad": func() {}}))
		boom := errors.New("broker says no")
		broker.SetFault(func(rpc.Message) error { return boom })
		_, err = client.Call(t.Context(), target, "m", nil)
		require.ErrorIs(t, err, boom)
		require.ErrorIs(t, client.Cast(t.Context(), target, "m", nil), boom)
		require.ErrorIs(t, client.Fanout(t.Context(), target, "m", nil), boom)

		broker.SetFault(nil)
		waiting := make(chan error, 1)
		go func() {
			_, err := client.Call(t.Context(), target, "m", nil)
			waiting <- err
		}()
		time.Sleep(time.Second)
		client.Close()
		require.ErrorIs(t, <-waiting, rpc.ErrClosed)
		_, err = client.Call(t.Context(), target, "m", nil)
		require.ErrorIs(t, err, rpc.ErrClosed)
		client.Close()
	})
}

func TestClientIgnoresForeignReplies(t *testing.T) {
	bubble(t, func(t *testing.T) {
		broker := rpctest.NewBroker()
		client := rpc.NewClient(broker, rpc.ClientOptions{})
		defer client.Close()
		result := make(chan error, 1)
		go func() {
			_, err := client.Call(t.Context(), rpc.Target{Topic: "conductor"}, "m", nil)
			result <- err
		}()
		time.Sleep(time.Second)
		members, err := rpctest.Members(broker.Sent()[0].Body)
		require.NoError(t, err)
		msgID, err := strconv.Unquote(string(members["_msg_id"]))
		require.NoError(t, err)
		for _, body := range []string{
			`nonsense`, `{"ending": true}`, `{"_msg_id": "other", "ending": true}`, `{"_msg_id": "` + msgID + `", "ending": "x"}`,
			`{"_msg_id": "` + msgID + `", "result": null, "failure": null, "ending": false, "_unique_id": "1"}`,
		} {
			require.NoError(t, broker.Publish(t.Context(), rpc.Message{RoutingKey: broker.Queues()[0], Body: []byte(body)}))
		}
		time.Sleep(time.Second)
		require.Empty(t, result)
		require.NoError(t, broker.Publish(t.Context(), rpc.Message{
			RoutingKey: broker.Queues()[0],
			Body:       []byte(`{"_msg_id": "` + msgID + `", "failure": "{\"class\": \"X\", \"module\": \"nova.exception\", \"tb\": [\"Traceback (most recent call last):\\n\"]}", "ending": true}`),
		}))
		requireFailure(t, <-result, "X", "")
	})
}
