package rabbit

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	guest := []Host{{"localhost", 5672, "guest", "guest"}}
	tests := map[string]struct {
		hosts []Host
		vhost string
	}{
		"rabbit://":                                   {guest, "/"},
		"rabbit:///":                                  {guest, "/"},
		"rabbit:///nova":                              {guest, "nova"},
		"rabbit://u:p@h":                              {[]Host{{"h", 5672, "u", "p"}}, "/"},
		"rabbit://u:p@h/":                             {[]Host{{"h", 5672, "u", "p"}}, "/"},
		"rabbit://u:p@h//":                            {[]Host{{"h", 5672, "u", "p"}}, "/"},
		"rabbit://u:p@h/%2F":                          {[]Host{{"h", 5672, "u", "p"}}, "/"},
		"rabbit://u:p@h/%2Fnova":                      {[]Host{{"h", 5672, "u", "p"}}, "/nova"},
		"rabbit://u:p@h:5671/nova":                    {[]Host{{"h", 5671, "u", "p"}}, "nova"},
		"kombu+rabbit://h":                            {[]Host{{"h", 5672, "", ""}}, "/"},
		"rabbit://u:p@a:1,v:q@b:2/x":                  {[]Host{{"a", 1, "u", "p"}, {"b", 2, "v", "q"}}, "x"},
		"rabbit://u:p@a,b/":                           {[]Host{{"a", 5672, "u", "p"}, {"b", 5672, "", ""}}, "/"},
		"rabbit://u@h":                                {[]Host{{"h", 5672, "u", ""}}, "/"},
		"rabbit://u:p@w@h":                            {[]Host{{"h", 5672, "u", "p@w"}}, "/"},
		"rabbit://u:p:w@h":                            {[]Host{{"h", 5672, "u", "p:w"}}, "/"},
		"rabbit://%75%40:%2F%3a+%25%2c@h":             {[]Host{{"h", 5672, "u@", "/:+%,"}}, "/"},
		"rabbit://u:p@[::1]:5673/":                    {[]Host{{"::1", 5673, "u", "p"}}, "/"},
		"rabbit://[2001:db8::1],u:p@[2001:db8::2]:1/": {[]Host{{"2001:db8::1", 5672, "", ""}, {"2001:db8::2", 1, "u", "p"}}, "/"},
		"rabbit://u:p@:1234/":                         {[]Host{{"localhost", 1234, "u", "p"}}, "/"},
		"rabbit://u:p@h/v?ssl=true#frag":              {[]Host{{"h", 5672, "u", "p"}}, "v"},
	}
	for in, want := range tests {
		o, err := ParseURL(in)
		require.NoError(t, err, in)
		require.Equal(t, want.hosts, o.Hosts, in)
		require.Equal(t, want.vhost, o.VirtualHost, in)
		require.NoError(t, o.check(), in)
	}
	require.Equal(t, "[::1]:5673", Host{Name: "::1", Port: 5673}.Address())
}

func TestParseURLQuery(t *testing.T) {
	t.Parallel()
	o, err := ParseURL("rabbit://h/?rabbit_quorum_queue=true&heartbeat_timeout_threshold=0&rabbit_transient_queues_ttl=60" +
		"&ssl=1&ssl_ca_file=%2Fetc%2Fca.pem&kombu_reconnect_delay=0.5&rabbit_qos_prefetch_count=10&amqp_auto_delete=Yes&rpc_conn_pool_size=5")
	require.NoError(t, err)
	want := Defaults()
	want.Hosts = []Host{{Name: "h", Port: 5672}}
	want.QuorumQueue, want.Heartbeat, want.TransientTTL, want.AutoDelete, want.Prefetch = true, 0, time.Minute, true, 10
	want.TLS.Enabled, want.TLS.CAFile, want.ReconnectDelay = true, "/etc/ca.pem", 500*time.Millisecond
	require.Equal(t, want, o)

	o, err = Options{Durable: true}.WithURL("rabbit://h/?amqp_durable_queues=off")
	require.NoError(t, err)
	require.False(t, o.Durable)
}

func TestParseURLRefuses(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		"", "h", "amqp://h", "rabbit://u:s3cret%zz@h", "rabbit://u:s3cret@h:0", "rabbit://u:s3cret@h:x", "rabbit://u:s3cret@h:70000", "rabbit://u:s3cret@[::1",
		"rabbit://u:s3cret@[::1]x", "rabbit://u:s3cret@h/%zz", "rabbit://u:s3cret/word@h/", "rabbit://u:1?s3cret@h", "rabbit://h/?unknown=s3cret", "rabbit://h/?ssl=s3cret%zz",
		"rabbit://h/?ssl=maybe", "rabbit://h/?rabbit_qos_prefetch_count=x", "rabbit://h/?rabbit_retry_interval=-1",
	} {
		_, err := ParseURL(in)
		require.Error(t, err, in)
		require.NotContains(t, err.Error(), "s3cret", in)
		require.ErrorContains(t, err, "transport_url", in)
	}
}

func TestOptionsShowNoSecret(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.Hosts = []Host{{Name: "h", Port: 1, User: "u", Password: reqctx.Secret("s3cret")}}
	require.NotContains(t, fmt.Sprintf("%v %+v %#v", o, o, o), "s3cret")
}

func TestOptionsCheck(t *testing.T) {
	t.Parallel()
	require.NoError(t, Defaults().check())
	for want, change := range map[string]func(*Options){
		"no host":                 func(o *Options) { o.Hosts = nil },
		"port 0":                  func(o *Options) { o.Hosts = []Host{{Name: "h"}} },
		"rabbit_login_method":     func(o *Options) { o.LoginMethod = "RABBIT-CR-DEMO" },
		"kombu_failover_strategy": func(o *Options) { o.FailoverStrategy = "x" },
		"kombu_compression":       func(o *Options) { o.Compression = "lzma" },
		"ssl_version":             func(o *Options) { o.TLS.Version = "SSLv2" },
		"ssl_cert_file":           func(o *Options) { o.TLS.KeyFile = "/k" },
		"rabbit_ha_queues":        func(o *Options) { o.HAQueues, o.QuorumQueue = true, true },
		"rabbit_stream_fanout":    func(o *Options) { o.StreamFanout = true },
		"rabbit_retry_interval":   func(o *Options) { o.RetryInterval = 0 },
		"must not be negative":    func(o *Options) { o.Prefetch = -1 },
	} {
		o := Defaults()
		change(&o)
		require.ErrorContains(t, o.check(), want)
		_, err := New(o)
		require.Error(t, err)
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("rabbit://u:p@a:1,v:q@[::1]:2/x?ssl=true")
	f.Add("rabbit://%75:%2F@h//?a=b&a=c")
	f.Fuzz(func(t *testing.T, in string) {
		o, err := ParseURL(in)
		if err != nil {
			return
		}
		require.NotEmpty(t, o.Hosts)
		require.NotEmpty(t, o.VirtualHost)
		for _, h := range o.Hosts {
			require.NotEmpty(t, h.Name)
			require.Positive(t, h.Port)
		}
	})
}
