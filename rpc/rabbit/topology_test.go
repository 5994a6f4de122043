package rabbit

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/streadway/amqp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/rpc"
)

func TestQueueArgumentsAndFlags(t *testing.T) {
	t.Parallel()
	type flags struct{ ExchangeDurable, ExchangeAuto, QueueDurable, QueueAuto bool }
	nova, fan := rpc.Exchange{Name: "nova", Kind: rpc.ExchangeTopic}, rpc.Exchange{Name: "compute_fanout", Kind: rpc.ExchangeFanout}
	topic := rpc.Queue{Name: "compute", Kind: rpc.QueueTopic, Exchange: nova}
	fanout := rpc.Queue{Name: "compute_fanout_x", Kind: rpc.QueueFanout, Exchange: fan}
	reply := rpc.Queue{Name: "reply_x", Kind: rpc.QueueReply}
	expires := amqp.Table{"x-expires": int64(1800000)}
	tests := map[string]struct {
		change                  func(*Options)
		topic, fanout, reply    amqp.Table
		topicF, fanoutF, replyF flags
		fanoutName              string
	}{
		"defaults": {
			change: func(*Options) {}, topic: amqp.Table{}, fanout: expires, reply: expires,
			fanoutF: flags{ExchangeAuto: true},
		},
		"durable and auto-delete": {
			change: func(o *Options) { o.Durable, o.AutoDelete = true, true }, topic: amqp.Table{}, fanout: expires, reply: expires,
			topicF: flags{true, true, true, true}, fanoutF: flags{ExchangeAuto: true}, replyF: flags{ExchangeDurable: true, ExchangeAuto: true},
		},
		"quorum": {
			change: func(o *Options) { o.QuorumQueue, o.QuorumDeliveryLimit, o.QuorumMaxMemoryBytes = true, 5, 7 },
			topic:  amqp.Table{"x-queue-type": "quorum", "x-delivery-limit": int64(5), "x-max-in-memory-bytes": int64(7)},
			fanout: expires, reply: expires,
			topicF: flags{ExchangeDurable: true, QueueDurable: true}, fanoutF: flags{ExchangeAuto: true}, replyF: flags{ExchangeDurable: true},
		},
		"transient quorum without ttl": {
			change: func(o *Options) {
				o.TransientQuorumQueue, o.TransientTTL, o.QuorumMaxMemoryLength = true, 0, 9
			},
			topic:   amqp.Table{},
			fanout:  amqp.Table{"x-queue-type": "quorum", "x-max-in-memory-length": int64(9)},
			reply:   amqp.Table{"x-queue-type": "quorum", "x-max-in-memory-length": int64(9)},
			fanoutF: flags{ExchangeDurable: true, ExchangeAuto: true, QueueDurable: true}, replyF: flags{QueueDurable: true},
		},
		"ha": {
			change: func(o *Options) { o.HAQueues = true },
			topic:  amqp.Table{"x-ha-policy": "all"},
			fanout: amqp.Table{"x-ha-policy": "all", "x-expires": int64(1800000)}, reply: amqp.Table{"x-ha-policy": "all", "x-expires": int64(1800000)},
			fanoutF: flags{ExchangeAuto: true},
		},
		"stream": {
			change:  func(o *Options) { o.StreamFanout, o.TransientQuorumQueue, o.Prefetch = true, true, 1 },
			topic:   amqp.Table{},
			fanout:  amqp.Table{"x-queue-type": "stream", "x-max-age": "1800s"},
			reply:   amqp.Table{"x-queue-type": "quorum", "x-expires": int64(1800000)},
			fanoutF: flags{ExchangeDurable: true, ExchangeAuto: true, QueueDurable: true}, replyF: flags{QueueDurable: true},
			fanoutName: "compute_fanout",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := Defaults()
			tt.change(&o)
			require.NoError(t, o.check())
			top := &topology{options: &o}
			for _, q := range []struct {
				queue rpc.Queue
				args  amqp.Table
				flags flags
			}{{topic, tt.topic, tt.topicF}, {fanout, tt.fanout, tt.fanoutF}, {reply, tt.reply, tt.replyF}} {
				require.Empty(t, cmp.Diff(q.args, top.queueArguments(q.queue)), q.queue.Name)
				var got flags
				got.QueueDurable, got.QueueAuto = top.queueFlags(q.queue)
				got.ExchangeDurable, got.ExchangeAuto = top.exchangeFlags(q.queue.Exchange)
				require.Equal(t, q.flags, got, q.queue.Name)
			}
			want := fanout.Name
			if tt.fanoutName != "" {
				want = tt.fanoutName
			}
			require.Equal(t, want, top.queueName(fanout))
		})
	}
}

func TestRepair(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.Durable = true
	top := &topology{options: &o}
	refused := &amqp.Error{Code: amqp.PreconditionFailed, Reason: "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'compute' in vhost '/': received 'true' but current is 'false'"}
	other := &amqp.Error{Code: amqp.PreconditionFailed, Reason: "PRECONDITION_FAILED - inequivalent arg 'x-expires'"}
	require.NoError(t, top.repair(t.Context(), nil, true, "compute"))
	require.Equal(t, other, top.repair(t.Context(), other, true, "compute"))
	require.Equal(t, refused, top.repair(t.Context(), refused, false, "compute"), "nothing is left to relax")
	require.ErrorIs(t, top.repair(t.Context(), refused, true, "compute", "nova"), errAgain)
	for _, name := range []string{"compute", "nova"} {
		require.True(t, top.isRelaxed(name))
	}
	durable, _ := top.queueFlags(rpc.Queue{Name: "compute", Kind: rpc.QueueTopic})
	require.False(t, durable)
	require.True(t, hasCode(errors.Join(errors.New("x"), other), amqp.PreconditionFailed))
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	o := Defaults()
	b := newBackoff(&o)
	var got []int
	for range 17 {
		got = append(got, int(b.next()/time.Second))
	}
	require.Equal(t, []int{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 30, 30}, got)
	b.reset()
	require.Equal(t, time.Second, b.next())
}

func TestLinkHosts(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.Hosts = []Host{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	l := newLink("publish", &o, defaultTiming, "x")
	require.ElementsMatch(t, o.Hosts, l.hosts)
	var round []Host
	for attempt := range 3 {
		round = append(round, l.host(attempt))
	}
	require.ElementsMatch(t, o.Hosts, round)
	require.Equal(t, l.host(0), l.host(3))
	o.ReconnectSplay = time.Second
	for range 20 {
		d := l.reconnectDelay()
		require.GreaterOrEqual(t, d, o.ReconnectDelay)
		require.Less(t, d, o.ReconnectDelay+o.ReconnectSplay)
	}
}

func TestMechanisms(t *testing.T) {
	t.Parallel()
	h := Host{User: "me", Password: "pw"}
	auths := mechanisms("AMQPLAIN", h)
	require.Equal(t, "AMQPLAIN", auths[0].Mechanism())
	require.Equal(t, "\x05LOGINS\x00\x00\x00\x02me\x08PASSWORDS\x00\x00\x00\x02pw", auths[0].Response())
	require.Equal(t, "PLAIN", auths[1].Mechanism())
	require.Equal(t, "\x00me\x00pw", mechanisms("PLAIN", h)[0].Response())
	require.Equal(t, "EXTERNAL", mechanisms("EXTERNAL", h)[0].Mechanism())
	require.Empty(t, mechanisms("EXTERNAL", h)[0].Response())
}

func TestCompression(t *testing.T) {
	t.Parallel()
	body := []byte(`{"a": "aaaaaaaaaaaaaaaaaaaaaaaaaaaa"}`)
	headers, packed, err := compress("gzip", body)
	require.NoError(t, err)
	require.Equal(t, amqp.Table{"compression": "application/x-gzip"}, headers)
	got, err := decompress(headers, packed)
	require.NoError(t, err)
	require.Equal(t, body, got)
	headers, packed, err = compress("", body)
	require.NoError(t, err)
	require.Nil(t, headers)
	require.Equal(t, body, packed)
	got, err = decompress(amqp.Table{}, body)
	require.NoError(t, err)
	require.Equal(t, body, got)
	for _, method := range []string{"application/x-gzip", "application/x-bz2", "application/x-lzma"} {
		_, err = decompress(amqp.Table{"compression": method}, body)
		require.Error(t, err)
	}
}
