package rpc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
	"github.com/compute-agent/compute-agent/rpc/rpctest"
)

// lab is a broker with one server and one client, inside a synctest bubble.
type lab struct {
	broker *rpctest.Broker
	client *rpc.Client
	stop   func() error // ends the server and gives what Run returned
}

var compute = rpc.Target{Topic: "compute", Server: "node1", Version: "6.0"}

func newLab(t *testing.T, o rpc.ServerOptions, methods map[string]rpc.Handler) *lab {
	t.Helper()
	l := &lab{broker: rpctest.NewBroker()}
	o.Topic, o.Host = "compute", "node1"
	server := rpc.NewServer(l.broker, o, rpc.Endpoint{Version: "6.1", Methods: methods})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	<-server.Ready()
	l.client = rpc.NewClient(l.broker, rpc.ClientOptions{})
	l.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		_ = l.stop()
		l.client.Close()
	})
	return l
}

// bubble runs a test with a fake clock; cleanups run inside.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, f)
}

func requireFailure(t *testing.T, err error, class, message string) {
	t.Helper()
	var f *rpc.Failure
	require.ErrorAs(t, err, &f)
	require.Equal(t, class, f.Class)
	require.Contains(t, f.Message, message)
	require.Equal(t, "Traceback (most recent call last):\n", f.Traceback[0])
}

func TestCall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t, rpc.ServerOptions{}, map[string]rpc.Handler{
			"echo":    func(_ context.Context, a rpc.Args) (any, error) { return a["arg"], nil },
			"nothing": func(context.Context, rpc.Args) (any, error) { return nil, nil },
			"value":   func(context.Context, rpc.Args) (any, error) { return map[string]any{"n": 1}, nil },
			"missing": func(_ context.Context, a rpc.Args) (any, error) { return nil, a.Decode("instance", new(string)) },
			"remote": func(context.Context, rpc.Args) (any, error) {
				return nil, fmt.Errorf("wrapped: %w", &rpc.Failure{Class: "InstanceNotFound", Module: "nova.exception", Message: "gone", Kwargs: map[string]any{"code": 404}})
			},
			"plain":  func(context.Context, rpc.Args) (any, error) { return nil, errors.New("boom") },
			"panic":  func(context.Context, rpc.Args) (any, error) { panic("secret") },
			"unjson": func(context.Context, rpc.Args) (any, error) { return func() {}, nil },
			"unkwarg": func(context.Context, rpc.Args) (any, error) {
				return nil, &rpc.Failure{Class: "X", Module: "nova.exception", Message: "m", Kwargs: map[string]any{"f": func() {}}}
			},
			"_private": func(context.Context, rpc.Args) (any, error) { return 1, nil },
		})
		call := func(target rpc.Target, method string) (json.RawMessage, error) {
			return l.client.Call(t.Context(), target, method, map[string]any{"arg": []any{"é", 1, nil}})
		}
		for method, want := range map[string]string{"echo": `["é", 1, null]`, "nothing": `null`, "value": `{"n": 1}`} {
			got, err := call(compute, method)
			require.NoError(t, err)
			require.JSONEq(t, want, string(got))
		}
		got, err := call(rpc.Target{Topic: "compute", Version: "6.1"}, "echo")
		require.NoError(t, err)
		require.NotEmpty(t, got)
		for method, want := range map[string][2]string{
			"missing": {"TypeError", "'instance'"}, "remote": {"InstanceNotFound", "gone"}, "plain": {"Exception", "boom"},
			"panic": {"Exception", "internal error in method panic"}, "unjson": {"Exception", "result of unjson"}, "unkwarg": {"X", "m"},
			"_private": {"NoSuchMethod", "_private"}, "other": {"NoSuchMethod", "Endpoint does not support RPC method other"},
		} {
			_, err := call(compute, method)
			requireFailure(t, err, want[0], want[1])
		}
		_, err = call(rpc.Target{Topic: "compute", Version: "7.0"}, "echo")
		requireFailure(t, err, "UnsupportedVersion", "Endpoint does not support RPC version 7.0. Attempted method: echo")
		_, err = call(rpc.Target{Topic: "compute", Namespace: "x", Version: "6.0"}, "echo")
		requireFailure(t, err, "UnsupportedVersion", "")
		require.NoError(t, l.stop())
		require.NotContains(t, fmt.Sprint(l.broker.Queues()), "fanout")
		require.Contains(t, l.broker.Queues(), "compute.node1")
	})
}

func TestRequestOnTheWire(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t, rpc.ServerOptions{}, map[string]rpc.Handler{"m": func(context.Context, rpc.Args) (any, error) { return nil, nil }})
		_, err := l.client.Call(t.Context(), rpc.Target{Topic: "compute", Server: "node1", Version: "6.0", Timeout: 1800 * time.Second, Monitor: time.Minute}, "m", nil)
		require.NoError(t, err)
		require.NoError(t, l.client.Cast(t.Context(), rpc.Target{Topic: "compute", Namespace: "ns"}, "m", nil))
		require.NoError(t, l.client.Fanout(t.Context(), rpc.Target{Topic: "scheduler", Version: "4.2"}, "m", nil))
		synctest.Wait()
		sent := slices.DeleteFunc(l.broker.Sent(), func(m rpc.Message) bool { return m.Exchange.Kind == rpc.ExchangeDefault })
		require.Len(t, sent, 3)

		call, cast, fanout := sent[0], sent[1], sent[2]
		require.Equal(t, "nova", call.Exchange.Name)
		require.Equal(t, "compute.node1", call.RoutingKey)
		require.Equal(t, 1800*time.Second, call.Expiration)
		require.False(t, call.Mandatory)
		members, err := rpctest.Members(call.Body)
		require.NoError(t, err)
		require.JSONEq(t, `60`, string(members["_timeout"]))
		require.Regexp(t, `^"reply_[0-9a-f]{32}"$`, string(members["_reply_q"]))
		require.Regexp(t, `^"[0-9a-f]{32}"$`, string(members["_msg_id"]))
		require.Regexp(t, `^"[0-9a-f]{32}"$`, string(members["_unique_id"]))
		require.JSONEq(t, `{}`, string(members["args"]))
		require.NotContains(t, members, "namespace")
		require.JSONEq(t, `true`, string(members["_context_is_admin"]))

		members, err = rpctest.Members(cast.Body)
		require.NoError(t, err)
		require.Zero(t, cast.Expiration)
		require.JSONEq(t, `"ns"`, string(members["namespace"]))
		require.JSONEq(t, `"1.0"`, string(members["version"]))
		for _, key := range []string{"_msg_id", "_reply_q", "_timeout"} {
			require.NotContains(t, members, key)
		}
		require.Equal(t, rpc.Exchange{Name: "scheduler_fanout", Kind: rpc.ExchangeFanout}, fanout.Exchange)
		require.Empty(t, fanout.RoutingKey)
	})
}

func TestContextTravels(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var got atomic.Pointer[reqctx.Request]
		var deadline atomic.Bool
		l := newLab(t, rpc.ServerOptions{}, map[string]rpc.Handler{"m": func(ctx context.Context, _ rpc.Args) (any, error) {
			got.Store(reqctx.From(ctx))
			_, ok := ctx.Deadline()
			deadline.Store(ok)
			return nil, nil
		}})
		raw := map[string]json.RawMessage{"request_id": json.RawMessage(`"req-1"`), "roles": json.RawMessage(`["member"]`), "odd": json.RawMessage(`{"a": [1]}`)}
		ctx := reqctx.With(t.Context(), reqctx.FromMap(raw))
		_, err := l.client.Call(ctx, compute, "m", nil)
		require.NoError(t, err)
		require.Equal(t, "req-1", got.Load().RequestID)
		require.False(t, got.Load().IsAdmin)
		require.Equal(t, raw, got.Load().Raw)
		require.True(t, deadline.Load())
		require.NoError(t, l.client.Cast(ctx, compute, "m", nil))
		synctest.Wait()
		require.False(t, deadline.Load(), "a cast has no deadline")
	})
}

func TestFanoutAndSecondTopic(t *testing.T) {
	bubble(t, func(t *testing.T) {
		broker := rpctest.NewBroker()
		var mu sync.Mutex
		seen := map[string]int{}
		ctx, cancel := context.WithCancel(t.Context())
		var servers sync.WaitGroup
		for _, s := range [][2]string{{"compute", "a"}, {"compute", "b"}, {"compute-alt", "a"}} {
			server := rpc.NewServer(broker, rpc.ServerOptions{Topic: s[0], Host: s[1]}, rpc.Endpoint{Methods: map[string]rpc.Handler{
				"m": func(context.Context, rpc.Args) (any, error) {
					mu.Lock()
					defer mu.Unlock()
					seen[s[0]+"."+s[1]]++
					return nil, nil
				},
			}})
			servers.Go(func() { _ = server.Run(ctx) })
			<-server.Ready()
		}
		client := rpc.NewClient(broker, rpc.ClientOptions{})
		require.NoError(t, client.Fanout(t.Context(), rpc.Target{Topic: "compute"}, "m", nil))
		require.NoError(t, client.Cast(t.Context(), rpc.Target{Topic: "compute-alt", Server: "a"}, "m", nil))
		synctest.Wait()
		require.Equal(t, map[string]int{"compute.a": 1, "compute.b": 1, "compute-alt.a": 1}, seen)
		cancel()
		servers.Wait()
	})
}

func TestMalformedAndDuplicate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var runs atomic.Int32
		l := newLab(t, rpc.ServerOptions{}, map[string]rpc.Handler{"m": func(context.Context, rpc.Args) (any, error) {
			runs.Add(1)
			return nil, nil
		}})
		publish := func(body string) {
			require.NoError(t, l.broker.Publish(t.Context(), rpc.Message{
				Exchange: rpc.Exchange{Name: "nova", Kind: rpc.ExchangeTopic}, RoutingKey: "compute.node1", Body: []byte(body),
			}))
		}
		for _, body := range []string{``, `{`, `[]`, `null`, `{"oslo.version": "3.0", "oslo.message": "{}"}`, `{"method": 1}`, `{"oslo.version": "2.0", "oslo.message": "x"}`} {
			publish(body)
		}
		for range 3 {
			publish(`{"method": "m", "version": "6.0", "_unique_id": "same"}`)
		}
		publish(`{"method": "m", "version": "6.0", "args": []}`) // a cast with broken arguments
		synctest.Wait()
		require.Equal(t, int32(1), runs.Load())

		// Who waits for an answer gets one.
		replies := make(chan string, 4)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			_ = l.broker.Consume(ctx, rpc.Subscription{
				Queues: []rpc.Queue{{Name: "reply_x", Kind: rpc.QueueReply}},
				Handle: func(d rpc.Delivery) { replies <- string(d.Body) },
			})
		}()
		synctest.Wait()
		publish(`{"method": 1, "_msg_id": "id1", "_reply_q": "reply_x"}`)
		require.Contains(t, <-replies, `ValueError`)
		publish(`{"method": "m", "version": "6.0", "args": [], "_msg_id": "id2", "_reply_q": "reply_x"}`)
		require.Contains(t, <-replies, `TypeError`)
		require.Equal(t, int32(1), runs.Load())
	})
}

func TestMonitor(t *testing.T) {
	slow := map[string]rpc.Handler{"slow": func(ctx context.Context, _ rpc.Args) (any, error) {
		select {
		case <-time.After(10 * time.Minute):
		case <-ctx.Done():
		}
		return "done", nil
	}}
	beats := func(t *testing.T, l *lab) (count int) {
		t.Helper()
		for _, m := range l.broker.Sent() {
			members, err := rpctest.Members(m.Body)
			require.NoError(t, err)
			if string(members["ending"]) == "false" {
				require.JSONEq(t, `null`, string(members["result"]))
				require.True(t, m.Mandatory)
				count++
			}
		}
		return count
	}
	t.Run("long call with signs of life", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			l := newLab(t, rpc.ServerOptions{}, slow)
			target := compute
			target.Timeout, target.Monitor = 30*time.Minute, time.Minute
			got, err := l.client.Call(t.Context(), target, "slow", nil)
			require.NoError(t, err)
			require.JSONEq(t, `"done"`, string(got))
			require.InDelta(t, 20, beats(t, l), 1) // 10 minutes, one every 30 s
		})
	})
	t.Run("none without monitoring", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			l := newLab(t, rpc.ServerOptions{}, slow)
			target := compute
			target.Timeout = 30 * time.Minute
			_, err := l.client.Call(t.Context(), target, "slow", nil)
			require.NoError(t, err)
			require.Zero(t, beats(t, l))
		})
	})
	t.Run("client gives up on silence", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			l := newLab(t, rpc.ServerOptions{}, slow)
			l.broker.SetFault(func(m rpc.Message) error {
				if m.Mandatory {
					return errors.New("replies are lost")
				}
				return nil
			})
			target := compute
			target.Timeout, target.Monitor = 30*time.Minute, time.Minute
			start := time.Now()
			_, err := l.client.Call(t.Context(), target, "slow", nil)
			require.ErrorIs(t, err, rpc.ErrTimeout)
			require.ErrorContains(t, err, "no sign of life")
			require.Equal(t, time.Minute, time.Since(start))
		})
	})
}

func TestCallDeadlineReachesHandler(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ended := make(chan error, 1)
		l := newLab(t, rpc.ServerOptions{}, map[string]rpc.Handler{"m": func(ctx context.Context, _ rpc.Args) (any, error) {
			<-ctx.Done()
			ended <- ctx.Err()
			time.Sleep(time.Second) // the caller's time is over at the same instant
			return nil, ctx.Err()
		}})
		_, err := l.client.Call(t.Context(), compute, "m", nil)
		require.ErrorIs(t, err, rpc.ErrTimeout)
		require.ErrorIs(t, <-ended, context.DeadlineExceeded)
	})
}

func TestReplyToMissingQueue(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t, rpc.ServerOptions{Workers: 1}, map[string]rpc.Handler{"m": func(context.Context, rpc.Args) (any, error) { return nil, nil }})
		var tries atomic.Int32
		l.broker.SetFault(func(m rpc.Message) error {
			if m.RoutingKey == "reply_gone" {
				tries.Add(1)
			}
			return nil
		})
		ask := func() {
			require.NoError(t, l.broker.Publish(t.Context(), rpc.Message{
				Exchange: rpc.Exchange{Name: "nova", Kind: rpc.ExchangeTopic}, RoutingKey: "compute.node1",
				Body: []byte(`{"method": "m", "version": "6.0", "_msg_id": "1", "_reply_q": "reply_gone"}`),
			}))
		}
		ask()
		time.Sleep(time.Second)
		// The one worker is free although the reply is still tried.
		_, err := l.client.Call(t.Context(), compute, "m", nil)
		require.NoError(t, err)
		time.Sleep(time.Minute)
		require.InDelta(t, 240, tries.Load(), 2) // every 0.25 s for 60 s

		tries.Store(0)
		ask()
		time.Sleep(5 * time.Second)
		require.Zero(t, tries.Load(), "a dead queue is not tried")
		time.Sleep(time.Minute)
		ask()
		time.Sleep(time.Second)
		require.Positive(t, tries.Load(), "but after 60 s it is")
	})
}

func TestReplyQueueComesBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t, rpc.ServerOptions{}, map[string]rpc.Handler{"m": func(context.Context, rpc.Args) (any, error) { return 1, nil }})
		var refused atomic.Int32
		l.broker.SetFault(func(m rpc.Message) error {
			if m.Mandatory && refused.Add(1) < 10 {
				return rpc.ErrUnroutable
			}
			return nil
		})
		got, err := l.client.Call(t.Context(), compute, "m", nil)
		require.NoError(t, err)
		require.JSONEq(t, `1`, string(got))
	})
}

func TestWorkersAreBoundedAndInOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		var order []int
		running, peak := 0, 0
		l := newLab(t, rpc.ServerOptions{Workers: 3}, map[string]rpc.Handler{"m": func(_ context.Context, a rpc.Args) (any, error) {
			var n int
			if err := a.Decode("n", &n); err != nil {
				return nil, err
			}
			mu.Lock()
			order = append(order, n)
			running++
			peak = max(peak, running)
			mu.Unlock()
			time.Sleep(time.Duration(n%4+1) * time.Second)
			mu.Lock()
			running--
			mu.Unlock()
			return nil, nil
		}})
		const messages = 50
		for n := range messages {
			require.NoError(t, l.client.Cast(t.Context(), compute, "m", map[string]any{"n": n}))
			synctest.Wait()
		}
		time.Sleep(time.Hour)
		mu.Lock()
		defer mu.Unlock()
		require.Len(t, order, messages)
		require.Equal(t, 3, peak)
		for at, n := range order { // workers that start at the same time may overtake each other, no more
			require.InDelta(t, at, n, 2, "%v", order)
		}
	})
}

func TestShutdown(t *testing.T) {
	t.Run("waits and replies", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			started := make(chan struct{})
			l := newLab(t, rpc.ServerOptions{ShutdownTimeout: time.Minute}, map[string]rpc.Handler{"m": func(context.Context, rpc.Args) (any, error) {
				close(started)
				time.Sleep(30 * time.Second)
				return "late", nil
			}})
			got := make(chan string, 1)
			go func() {
				result, err := l.client.Call(t.Context(), compute, "m", nil)
				got <- fmt.Sprint(string(result), err)
			}()
			<-started
			require.NoError(t, l.stop())
			require.Equal(t, `"late"<nil>`, <-got)
			require.NoError(t, l.client.Cast(t.Context(), compute, "m", nil)) // stays in its queue
			synctest.Wait()
			require.Contains(t, l.broker.Queues(), "compute.node1")
		})
	})
	t.Run("cancels at the bound", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			var ended, second atomic.Bool
			l := newLab(t, rpc.ServerOptions{ShutdownTimeout: time.Minute, Workers: 1}, map[string]rpc.Handler{
				"m": func(ctx context.Context, _ rpc.Args) (any, error) {
					<-ctx.Done()
					ended.Store(true)
					return nil, ctx.Err()
				},
				"second": func(context.Context, rpc.Args) (any, error) {
					second.Store(true)
					return nil, nil
				},
			})
			require.NoError(t, l.client.Cast(t.Context(), compute, "m", nil))
			require.NoError(t, l.client.Cast(t.Context(), compute, "second", nil))
			synctest.Wait()
			require.NoError(t, l.stop())
			require.True(t, ended.Load())
			require.False(t, second.Load())
		})
	})
	t.Run("names what it abandons", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			release := make(chan struct{})
			l := newLab(t, rpc.ServerOptions{ShutdownTimeout: time.Minute}, map[string]rpc.Handler{"stuck": func(context.Context, rpc.Args) (any, error) {
				<-release
				return nil, nil
			}})
			require.NoError(t, l.client.Cast(t.Context(), compute, "stuck", nil))
			synctest.Wait()
			require.ErrorContains(t, l.stop(), "handlers still run: [stuck]")
			close(release)
		})
	})
}
