//go:build functional

package rabbit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/rpc"
)

// shortTiming makes a stalled broker noticed within a second or two.
var shortTiming = timing{connect: 2 * time.Second, request: time.Second, confirm: time.Second, close: 500 * time.Millisecond}

func newImpatient(t testing.TB, o Options) *Transport {
	t.Helper()
	tr, err := newTransport(o, shortTiming)
	require.NoError(t, err)
	t.Cleanup(tr.Close)
	return tr
}

// counting is an endpoint that counts the runs of each n.
func counting() (rpc.Endpoint, func() map[int]int) {
	var mu sync.Mutex
	runs := map[int]int{}
	note := func(_ context.Context, a rpc.Args) (any, error) {
		var n int
		if err := a.Decode("n", &n); err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		runs[n]++
		return n, nil
	}
	slow := func(ctx context.Context, a rpc.Args) (any, error) {
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
		}
		return note(ctx, a)
	}
	e := rpc.Endpoint{Version: "1.0", Methods: map[string]rpc.Handler{"note": note, "slow": slow}}
	return e, func() map[int]int {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(runs)
	}
}

// TestCutConnections cuts both sides' connections again and again while calls and
// casts run: every one arrives, once.
func TestCutConnections(t *testing.T) {
	o := labOptions(t)
	name := unique(t)
	sweep(t, []string{name}, []string{name, name + ".node1"})
	serverProxy, serverOptions := newProxy(t, o)
	clientProxy, clientOptions := newProxy(t, o)
	endpoint, runs := counting()
	startServer(t, newLab(t, serverOptions), name, "node1", endpoint)
	client := newClient(t, newLab(t, clientOptions), name)
	target := rpc.Target{Topic: name, Server: "node1", Timeout: 2 * time.Minute}
	_, err := client.Call(t.Context(), target, "note", map[string]any{"n": -1})
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	stop := make(chan struct{})
	var chaos, work sync.WaitGroup
	chaos.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(300 * time.Millisecond):
			}
			if i%2 == 0 {
				clientProxy.cut()
			} else {
				serverProxy.cut()
			}
		}
	})
	const messages = 400
	var failed atomic.Int32
	for worker := range 4 {
		work.Go(func() {
			for n := worker; n < messages; n += 4 {
				var err error
				if n%2 == 0 {
					_, err = client.Call(ctx, target, "note", map[string]any{"n": n})
				} else {
					err = client.Cast(ctx, target, "note", map[string]any{"n": n})
				}
				if err != nil {
					failed.Add(1)
					t.Errorf("message %d: %v", n, err)
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	work.Wait()
	close(stop)
	chaos.Wait()
	require.Zero(t, failed.Load())
	require.Eventually(t, func() bool { return len(runs()) == messages+1 }, time.Minute, 50*time.Millisecond)
	for n, count := range runs() {
		require.Equal(t, 1, count, "message %d", n)
	}
}

// TestCallSurvivesBrokerAway starts a call while the broker is away, and loses the
// connections while another one runs.
func TestCallSurvivesBrokerAway(t *testing.T) {
	o := labOptions(t)
	name := unique(t)
	sweep(t, []string{name}, []string{name, name + ".node1"})
	p, through := newProxy(t, o)
	endpoint, runs := counting()
	startServer(t, newLab(t, through), name, "node1", endpoint)
	client := newClient(t, newLab(t, through), name)
	target := rpc.Target{Topic: name, Server: "node1", Timeout: time.Minute}
	_, err := client.Call(t.Context(), target, "note", map[string]any{"n": 0})
	require.NoError(t, err)

	done := make(chan error, 2)
	go func() {
		_, err := client.Call(t.Context(), target, "slow", map[string]any{"n": 1})
		done <- err
	}()
	time.Sleep(500 * time.Millisecond)
	p.down()
	time.Sleep(500 * time.Millisecond)
	go func() {
		_, err := client.Call(t.Context(), target, "note", map[string]any{"n": 2})
		done <- err
	}()
	time.Sleep(3 * time.Second)
	p.up()
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	require.Equal(t, map[int]int{0: 1, 1: 1, 2: 1}, runs())

	// A call's time also ends while nobody can be reached.
	p.down()
	target.Timeout = time.Second
	start := time.Now()
	_, err = client.Call(t.Context(), target, "note", map[string]any{"n": 3})
	require.ErrorIs(t, err, rpc.ErrTimeout)
	require.Less(t, time.Since(start), 10*time.Second)
	require.NotContains(t, err.Error(), labOptions(t).Hosts[0].Password)
	p.up()
}

// TestStalledBroker holds all bytes back: the watchdogs notice, and everything goes
// on over new connections.
func TestStalledBroker(t *testing.T) {
	o := labOptions(t)
	name := unique(t)
	sweep(t, []string{name}, []string{name, name + ".node1"})
	p, through := newProxy(t, o)
	through.Heartbeat = 2 * time.Second // the consumer's connection is noticed by silence
	endpoint, runs := counting()
	startServer(t, newLab(t, o), name, "node1", endpoint)
	client := newClient(t, newImpatient(t, through), name)
	target := rpc.Target{Topic: name, Server: "node1", Timeout: 30 * time.Second}
	_, err := client.Call(t.Context(), target, "note", map[string]any{"n": 0})
	require.NoError(t, err)
	p.stall()
	done := make(chan error, 1)
	start := time.Now()
	go func() {
		_, err := client.Call(t.Context(), target, "note", map[string]any{"n": 1})
		done <- err
	}()
	time.Sleep(3 * time.Second)
	p.cut() // what was held back never arrives
	p.resume()
	require.NoError(t, <-done)
	require.Less(t, time.Since(start), 25*time.Second)
	require.Eventually(t, func() bool { return len(runs()) == 2 }, 20*time.Second, 20*time.Millisecond)
	require.Equal(t, 1, runs()[1])
}

// TestCloseOfStalledTransport shows that closing never hangs.
func TestCloseOfStalledTransport(t *testing.T) {
	o := labOptions(t)
	name := unique(t)
	sweep(t, []string{name}, []string{name, name + ".node1"})
	p, through := newProxy(t, o)
	tr := newImpatient(t, through)
	endpoint, _ := counting()
	server := rpc.NewServer(tr, rpc.ServerOptions{Exchange: name, Topic: name, Host: "node1"}, endpoint)
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- server.Run(ctx) }()
	<-server.Ready()
	require.NoError(t, tr.Publish(t.Context(), rpc.Message{RoutingKey: "nowhere", Body: []byte(`{}`)}))
	p.stall()
	start := time.Now()
	stop()
	require.NoError(t, <-ran)
	tr.Close()
	require.Less(t, time.Since(start), 20*time.Second)
	require.ErrorIs(t, tr.Publish(t.Context(), rpc.Message{}), rpc.ErrClosed)
	require.ErrorIs(t, tr.Consume(t.Context(), rpc.Subscription{}), rpc.ErrClosed)
}

// TestReplyQueueIsDeclaredAgain deletes the client's reply queue: the broker cancels
// the consumer, which declares the same queue again.
func TestReplyQueueIsDeclaredAgain(t *testing.T) {
	o := labOptions(t)
	name := unique(t)
	sweep(t, []string{name}, []string{name, name + ".node1"})
	startServer(t, newLab(t, o), name, "node1", echoEndpoint())
	tr := newLab(t, o)
	var replyQueue atomic.Value
	client := rpc.NewClient(spy{tr, func(q rpc.Queue) { replyQueue.Store(q.Name) }}, rpc.ClientOptions{Exchange: name})
	t.Cleanup(client.Close)
	target := rpc.Target{Topic: name, Server: "node1", Timeout: 30 * time.Second}
	for i := range 3 {
		_, err := client.Call(t.Context(), target, "echo", map[string]any{"arg": i})
		require.NoError(t, err)
		require.NoError(t, admin(t, func(ch *amqp.Channel) error {
			_, err := ch.QueueDelete(replyQueue.Load().(string), false, false, false)
			return err
		}))
	}
	_, err := client.Call(t.Context(), target, "echo", map[string]any{"arg": 1})
	require.NoError(t, err)
	sweep(t, nil, []string{replyQueue.Load().(string)})
}

// spy shows the queues of a subscription.
type spy struct {
	*Transport
	seen func(rpc.Queue)
}

func (s spy) Consume(ctx context.Context, sub rpc.Subscription) error {
	s.seen(sub.Queues[0])
	return s.Transport.Consume(ctx, sub)
}

// TestFanoutQueueLifecycle checks names and the end of a server's queues.
func TestFanoutQueueLifecycle(t *testing.T) {
	o := labOptions(t)
	name := unique(t)
	sweep(t, []string{name}, []string{name, name + ".node1", name + ".node2"})
	var seen atomic.Int32
	e := rpc.Endpoint{Methods: map[string]rpc.Handler{"m": func(context.Context, rpc.Args) (any, error) {
		seen.Add(1)
		return nil, nil
	}}}
	client := newClient(t, newLab(t, o), name)
	// Nobody listens yet: the exchange is declared by the publisher and stays usable.
	require.NoError(t, client.Fanout(t.Context(), rpc.Target{Topic: name}, "m", nil))
	var fanouts []string
	ctx, stop := context.WithCancel(t.Context())
	var servers sync.WaitGroup
	for _, host := range []string{"node1", "node2"} {
		var mu sync.Mutex
		tr := spyAll{newLab(t, o), func(q rpc.Queue) {
			mu.Lock()
			defer mu.Unlock()
			if q.Kind == rpc.QueueFanout {
				fanouts = append(fanouts, q.Name)
			}
		}}
		s := rpc.NewServer(tr, rpc.ServerOptions{Exchange: name, Topic: name, Host: host}, e)
		servers.Go(func() { _ = s.Run(ctx) })
		<-s.Ready()
	}
	require.NoError(t, client.Fanout(t.Context(), rpc.Target{Topic: name}, "m", nil))
	require.Eventually(t, func() bool { return seen.Load() == 2 }, 20*time.Second, 10*time.Millisecond)
	stop()
	servers.Wait()
	require.Len(t, fanouts, 2)
	for _, q := range fanouts {
		require.True(t, strings.HasPrefix(q, name+"_fanout_"))
		err := admin(t, func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclarePassive(q, false, false, false, false, nil)
			return err
		})
		require.True(t, hasCode(err, amqp.NotFound), "%v", err)
	}
	// The exchange went with its last queue; the publisher declares it again.
	require.NoError(t, client.Fanout(t.Context(), rpc.Target{Topic: name}, "m", nil))
	sweep(t, []string{name + "_fanout"}, nil)
	// Casts wait in the host's queue until its next start.
	require.NoError(t, client.Cast(t.Context(), rpc.Target{Topic: name, Server: "node1"}, "m", nil))
	seen.Store(0)
	startServer(t, newLab(t, o), name, "node1", e)
	require.Eventually(t, func() bool { return seen.Load() == 1 }, 20*time.Second, 10*time.Millisecond)
}

type spyAll struct {
	*Transport
	seen func(rpc.Queue)
}

func (s spyAll) Consume(ctx context.Context, sub rpc.Subscription) error {
	for _, q := range sub.Queues {
		s.seen(q)
	}
	return s.Transport.Consume(ctx, sub)
}

// TestDurabilityMismatch: shared objects exist non-durable, we are set to durable.
func TestDurabilityMismatch(t *testing.T) {
	o := labOptions(t)
	name := unique(t)
	sweep(t, []string{name}, []string{name, name + ".node1"})
	require.NoError(t, admin(t, func(ch *amqp.Channel) error {
		if err := ch.ExchangeDeclare(name, "topic", false, false, false, false, nil); err != nil {
			return err
		}
		_, err := ch.QueueDeclare(name, false, false, false, false, nil)
		return err
	}))
	o.Durable = true
	startServer(t, newLab(t, o), name, "node1", echoEndpoint())
	_, err := newClient(t, newLab(t, o), name).Call(t.Context(), rpc.Target{Topic: name, Server: "node1"}, "echo", map[string]any{"arg": 1})
	require.NoError(t, err)
}

// TestRefusedDeclarationIsRetried: other arguments are an error until somebody
// removes the queue.
func TestRefusedDeclarationIsRetried(t *testing.T) {
	o := labOptions(t)
	name := unique(t)
	sweep(t, []string{name}, []string{name, name + ".node1"})
	require.NoError(t, admin(t, func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare(name, false, false, false, false, amqp.Table{"x-expires": int64(60000)})
		return err
	}))
	s := rpc.NewServer(newLab(t, o), rpc.ServerOptions{Exchange: name, Topic: name, Host: "node1"}, echoEndpoint())
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
		t.Error("ready in spite of the refusal")
	case <-time.After(time.Second):
	}
	require.NoError(t, admin(t, func(ch *amqp.Channel) error {
		_, err := ch.QueueDelete(name, false, false, false)
		return err
	}))
	select {
	case <-s.Ready():
	case <-time.After(20 * time.Second):
		t.Error("not ready after the obstacle was removed")
	}
	stop()
	require.NoError(t, <-done)
}

func TestMandatoryAndAttempts(t *testing.T) {
	o := labOptions(t)
	p, through := newProxy(t, o)
	tr := newLab(t, through)
	name := unique(t)
	var wg sync.WaitGroup
	var unroutable atomic.Int32
	for i := range 300 { // mandatory and plain ones mixed: returns hit only the right ones
		wg.Go(func() {
			m := rpc.Message{RoutingKey: fmt.Sprint(name, i), Body: fmt.Appendf(nil, `{"i": %d}`, i), Mandatory: i%2 == 0}
			err := tr.Publish(t.Context(), m)
			switch {
			case errors.Is(err, rpc.ErrUnroutable) && m.Mandatory:
				unroutable.Add(1)
			case err != nil || m.Mandatory:
				t.Errorf("message %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	require.Equal(t, int32(150), unroutable.Load())

	p.down()
	start := time.Now()
	err := tr.Publish(t.Context(), rpc.Message{RoutingKey: name, Body: []byte(`{}`), Attempts: 2})
	require.ErrorContains(t, err, "after 2 attempts")
	require.Less(t, time.Since(start), 30*time.Second)
	p.up()
	require.NoError(t, tr.Publish(t.Context(), rpc.Message{RoutingKey: name, Body: []byte(`{}`)}))
}

// TestBlockedBroker plays a broker with an alarm: it announces connection.blocked
// and reads nothing more. Publishes wait for their time, the connection stays.
func TestBlockedBroker(t *testing.T) {
	p, through := newProxy(t, labOptions(t))
	tr := newImpatient(t, through)
	publish := func(timeout time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		return tr.Publish(ctx, rpc.Message{RoutingKey: "nowhere", Body: []byte(`{}`)})
	}
	require.NoError(t, publish(20*time.Second))
	require.Equal(t, 1, p.accepted())
	s, err := tr.publish.session(t.Context(), false)
	require.NoError(t, err)

	p.hold()
	early := make(chan error, 1) // written before the announcement, confirmed after the end of the alarm
	go func() { early <- publish(time.Minute) }()
	time.Sleep(100 * time.Millisecond)
	p.inject(blockedFrame("low on memory"))
	require.Eventually(t, s.blocked.Load, 10*time.Second, 5*time.Millisecond)
	start := time.Now()
	err = publish(4 * time.Second) // longer than every watchdog
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, errBlocked)
	require.GreaterOrEqual(t, time.Since(start), 4*time.Second)
	late := make(chan error, 1)
	go func() { late <- publish(time.Minute) }()
	require.NoError(t, s.err())
	p.resume()
	p.inject(unblockedFrame())
	require.NoError(t, <-early)
	require.NoError(t, <-late)
	require.Equal(t, 1, p.accepted(), "the connection was not given up")
}

// TestIdleConnectionStays: heartbeats keep both connections open.
func TestIdleConnectionStays(t *testing.T) {
	o := labOptions(t)
	name := unique(t)
	sweep(t, []string{name}, []string{name, name + ".node1"})
	p, through := newProxy(t, o)
	through.Heartbeat = 2 * time.Second
	tr := newLab(t, through)
	startServer(t, tr, name, "node1", echoEndpoint())
	client := newClient(t, tr, name)
	target := rpc.Target{Topic: name, Server: "node1"}
	_, err := client.Call(t.Context(), target, "echo", map[string]any{"arg": 1})
	require.NoError(t, err)
	time.Sleep(9 * time.Second)
	_, err = client.Call(t.Context(), target, "echo", map[string]any{"arg": 1})
	require.NoError(t, err)
	require.Equal(t, 2, p.accepted())
}

func TestFailover(t *testing.T) {
	o := labOptions(t)
	dead := o.Hosts[0]
	dead.Port = 1 // nobody listens there
	o.Hosts = []Host{dead, o.Hosts[0], dead}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tr, err := Dial(ctx, o)
	require.NoError(t, err)
	tr.Close()
}

func TestDialErrorsNameTheCause(t *testing.T) {
	o := labOptions(t)
	o.Hosts[0].Password = "wrong-secret"
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second) // brokers take 3 s to refuse
	defer cancel()
	_, err := Dial(ctx, o)
	require.ErrorContains(t, err, "password")
	require.NotContains(t, err.Error(), "wrong-secret")

	o = labOptions(t)
	o.VirtualHost = "no-such-vhost"
	ctx, cancel = context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	_, err = Dial(ctx, o)
	require.ErrorContains(t, err, "vhost")
}

func TestPlainLoginAndCompression(t *testing.T) {
	o := labOptions(t)
	name := unique(t)
	sweep(t, []string{name}, []string{name, name + ".node1"})
	o.LoginMethod, o.Compression = "PLAIN", "gzip"
	tr := newLab(t, o)
	startServer(t, tr, name, "node1", echoEndpoint())
	got, err := newClient(t, tr, name).Call(t.Context(), rpc.Target{Topic: name, Server: "node1"}, "echo", map[string]any{"arg": strings.Repeat("x", 500000)})
	require.NoError(t, err)
	require.Len(t, got, 500002)
}

// TestQueueTypes runs the same exchange of messages over other kinds of queues.
func TestQueueTypes(t *testing.T) {
	for kind, change := range map[string]func(*Options){
		"durable":     func(o *Options) { o.Durable = true },
		"auto-delete": func(o *Options) { o.AutoDelete = true },
		"quorum":      func(o *Options) { o.QuorumQueue, o.QuorumDeliveryLimit = true, 3 },
		"stream":      func(o *Options) { o.StreamFanout, o.TransientQuorumQueue, o.Prefetch = true, true, 10 },
	} {
		t.Run(kind, func(t *testing.T) {
			o := labOptions(t)
			change(&o)
			name := unique(t)
			sweep(t, []string{name, name + "_fanout"}, []string{name, name + ".node1", name + "_fanout"})
			var fanned atomic.Int32
			e := echoEndpoint()
			e.Methods["fan"] = func(context.Context, rpc.Args) (any, error) {
				fanned.Add(1)
				return nil, nil
			}
			tr := newLab(t, o)
			startServer(t, tr, name, "node1", e)
			client := newClient(t, tr, name)
			got, err := client.Call(t.Context(), rpc.Target{Topic: name, Server: "node1"}, "echo", map[string]any{"arg": 1})
			require.NoError(t, err)
			require.JSONEq(t, `1`, string(got))
			require.NoError(t, client.Fanout(t.Context(), rpc.Target{Topic: name}, "fan", nil))
			require.Eventually(t, func() bool { return fanned.Load() == 1 }, 30*time.Second, 20*time.Millisecond)
		})
	}
}

func TestNotificationQueue(t *testing.T) {
	o := labOptions(t)
	name := unique(t)
	sweep(t, []string{name}, []string{name + ".info"})
	n, err := rpc.NewNotifier(newLab(t, o), rpc.NotifierOptions{Exchange: name, Drivers: []string{"messagingv2"}, Topics: []string{name}, Retry: -1})
	require.NoError(t, err)
	for range 20 {
		require.NoError(t, n.Notify(t.Context(), nil, "INFO", "compute.node1", "compute.instance.create.end", map[string]any{"a": 1}))
	}
	n.Close()
	require.NoError(t, admin(t, func(ch *amqp.Channel) error {
		q, err := ch.QueueDeclarePassive(name+".info", false, false, false, false, nil)
		require.Equal(t, 20, q.Messages)
		if err != nil {
			return err
		}
		d, _, err := ch.Get(name+".info", true)
		require.Equal(t, "application/json", d.ContentType)
		require.Equal(t, "utf-8", d.ContentEncoding)
		require.Equal(t, uint8(2), d.DeliveryMode)
		require.Empty(t, d.Expiration)
		return err
	}))
}
