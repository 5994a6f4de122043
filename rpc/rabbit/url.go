package rabbit

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// ParseURL reads a transport_url onto the defaults. See Options.WithURL.
func ParseURL(transportURL string) (Options, error) {
	return Defaults().WithURL(transportURL)
}

// WithURL returns the options with hosts, credentials, virtual host and the
// options of its query taken from a transport_url
// (oslo_messaging/transport.py:TransportURL.parse):
//
//	rabbit://[user:pass@]host[:port]{,[userN:passN@]hostN[:portN]}/[virtual_host][?option=value&…]
//
// Credentials belong to the host they stand at. No error shows any part of the
// URL that may be secret.
func (o Options) WithURL(transportURL string) (Options, error) {
	scheme, rest, ok := strings.Cut(transportURL, "://")
	if !ok {
		return o, errors.New("transport_url: no scheme")
	}
	if scheme != "rabbit" && !strings.HasPrefix(scheme, "kombu+") {
		return o, fmt.Errorf("transport_url: driver %q is not supported, want rabbit", scheme)
	}
	rest, query, _ := strings.Cut(rest, "?")
	netloc, path, _ := strings.Cut(rest, "/")
	if strings.Contains(path+query, "@") && !strings.Contains(netloc, "@") {
		return o, errors.New("transport_url: '@' behind the host: write '/' in a password as %2F, '?' as %3F, '#' as %23")
	}
	hosts, err := parseHosts(netloc)
	if err != nil {
		return o, err
	}
	o.Hosts = hosts
	// What is left of "//" or "/%2F" is "/": the same as nothing.
	vhost, err := url.PathUnescape(path)
	if err != nil {
		return o, errors.New("transport_url: virtual host is not percent-encoded correctly")
	}
	if vhost == "" {
		vhost = "/"
	}
	o.VirtualHost = vhost
	query, _, _ = strings.Cut(query, "#")
	return o.withQuery(query)
}

func parseHosts(netloc string) ([]Host, error) {
	if netloc == "" {
		return Defaults().Hosts, nil
	}
	var hosts []Host
	for i, part := range strings.Split(netloc, ",") {
		h, err := parseHost(part)
		if err != nil {
			return nil, fmt.Errorf("transport_url: host %d: %w", i+1, err)
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// parseHost reads "[user:pass@]host[:port]".
func parseHost(part string) (Host, error) {
	h := Host{Port: defaultPort}
	address := part
	if at := strings.LastIndexByte(part, '@'); at >= 0 {
		user, password, _ := strings.Cut(part[:at], ":")
		address = part[at+1:]
		var err, err2 error
		h.User, err = url.PathUnescape(user)
		password, err2 = url.PathUnescape(password)
		if err != nil || err2 != nil { // their texts quote the secret
			return Host{}, errors.New("user or password is not percent-encoded correctly")
		}
		h.Password = reqctx.Secret(password)
	}
	port := ""
	if name, ok := strings.CutPrefix(address, "["); ok {
		var after string
		if h.Name, after, ok = strings.Cut(name, "]"); !ok {
			return Host{}, errors.New("missing ] after an IPv6 address")
		}
		if after != "" {
			if port, ok = strings.CutPrefix(after, ":"); !ok {
				return Host{}, errors.New("unexpected text after an IPv6 address")
			}
		}
	} else {
		h.Name, port, _ = strings.Cut(address, ":")
	}
	if h.Name == "" {
		h.Name = defaultHost
	}
	if port != "" {
		n, err := strconv.Atoi(port)
		if err != nil || n < 1 || n > 65535 {
			return Host{}, errors.New("the port is not a number from 1 to 65535")
		}
		h.Port = n
	}
	return h, nil
}

// withQuery applies options of [oslo_messaging_rabbit] given in the URL
// (_drivers/common.py:ConfigOptsProxy). Repeated names are joined with commas,
// an unknown name is an error.
func (o Options) withQuery(query string) (Options, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return o, errors.New("transport_url: query is not encoded correctly")
	}
	for name, list := range values {
		set, ok := queryOptions[name]
		if !ok {
			return o, fmt.Errorf("transport_url: unknown option %q", name)
		}
		if err := set(&o, strings.Join(list, ",")); err != nil {
			return o, fmt.Errorf("transport_url: option %s: %w", name, err)
		}
	}
	return o, nil
}

// queryOptions are the options of the section by name. Those that change nothing
// here are accepted, since they are correct in a URL that other services share.
var queryOptions = map[string]func(*Options, string) error{
	"amqp_durable_queues":               boolean(func(o *Options) *bool { return &o.Durable }),
	"amqp_auto_delete":                  boolean(func(o *Options) *bool { return &o.AutoDelete }),
	"rabbit_ha_queues":                  boolean(func(o *Options) *bool { return &o.HAQueues }),
	"rabbit_quorum_queue":               boolean(func(o *Options) *bool { return &o.QuorumQueue }),
	"rabbit_transient_quorum_queue":     boolean(func(o *Options) *bool { return &o.TransientQuorumQueue }),
	"rabbit_quorum_delivery_limit":      integer(func(o *Options) *int { return &o.QuorumDeliveryLimit }),
	"rabbit_quorum_max_memory_length":   integer(func(o *Options) *int { return &o.QuorumMaxMemoryLength }),
	"rabbit_quorum_max_memory_bytes":    integer(func(o *Options) *int { return &o.QuorumMaxMemoryBytes }),
	"rabbit_quroum_max_memory_length":   integer(func(o *Options) *int { return &o.QuorumMaxMemoryLength }),
	"rabbit_quroum_max_memory_bytes":    integer(func(o *Options) *int { return &o.QuorumMaxMemoryBytes }),
	"rabbit_transient_queues_ttl":       seconds(func(o *Options) *time.Duration { return &o.TransientTTL }),
	"rabbit_stream_fanout":              boolean(func(o *Options) *bool { return &o.StreamFanout }),
	"rabbit_qos_prefetch_count":         integer(func(o *Options) *int { return &o.Prefetch }),
	"enable_cancel_on_failover":         boolean(func(o *Options) *bool { return &o.CancelOnFailover }),
	"direct_mandatory_flag":             boolean(func(o *Options) *bool { return &o.DirectMandatory }),
	"heartbeat_timeout_threshold":       seconds(func(o *Options) *time.Duration { return &o.Heartbeat }),
	"rabbit_retry_interval":             seconds(func(o *Options) *time.Duration { return &o.RetryInterval }),
	"rabbit_retry_backoff":              seconds(func(o *Options) *time.Duration { return &o.RetryBackoff }),
	"rabbit_interval_max":               seconds(func(o *Options) *time.Duration { return &o.IntervalMax }),
	"kombu_reconnect_delay":             seconds(func(o *Options) *time.Duration { return &o.ReconnectDelay }),
	"kombu_reconnect_splay":             seconds(func(o *Options) *time.Duration { return &o.ReconnectSplay }),
	"kombu_failover_strategy":           text(func(o *Options) *string { return &o.FailoverStrategy }),
	"kombu_compression":                 text(func(o *Options) *string { return &o.Compression }),
	"rabbit_login_method":               text(func(o *Options) *string { return &o.LoginMethod }),
	"ssl":                               boolean(func(o *Options) *bool { return &o.TLS.Enabled }),
	"rabbit_use_ssl":                    boolean(func(o *Options) *bool { return &o.TLS.Enabled }),
	"ssl_version":                       text(func(o *Options) *string { return &o.TLS.Version }),
	"kombu_ssl_version":                 text(func(o *Options) *string { return &o.TLS.Version }),
	"ssl_ca_file":                       text(func(o *Options) *string { return &o.TLS.CAFile }),
	"kombu_ssl_ca_certs":                text(func(o *Options) *string { return &o.TLS.CAFile }),
	"ssl_cert_file":                     text(func(o *Options) *string { return &o.TLS.CertFile }),
	"kombu_ssl_certfile":                text(func(o *Options) *string { return &o.TLS.CertFile }),
	"ssl_key_file":                      text(func(o *Options) *string { return &o.TLS.KeyFile }),
	"kombu_ssl_keyfile":                 text(func(o *Options) *string { return &o.TLS.KeyFile }),
	"ssl_enforce_hostname_verification": boolean(func(o *Options) *bool { return &o.TLS.VerifyHostname }),

	"ssl_enforce_fips_mode":                ignored,
	"heartbeat_rate":                       ignored,
	"heartbeat_in_pthread":                 ignored,
	"kombu_missing_consumer_retry_timeout": ignored,
	"rpc_conn_pool_size":                   ignored,
	"conn_pool_min_size":                   ignored,
	"conn_pool_ttl":                        ignored,
	"use_queue_manager":                    ignored,
	"hostname":                             ignored,
	"processname":                          ignored,
}

func ignored(*Options, string) error { return nil }

func text(field func(*Options) *string) func(*Options, string) error {
	return func(o *Options, v string) error {
		*field(o) = v
		return nil
	}
}

// boolean reads what oslo.config takes for a BoolOpt.
func boolean(field func(*Options) *bool) func(*Options, string) error {
	return func(o *Options, v string) error {
		switch strings.ToLower(v) {
		case "true", "1", "yes", "on":
			*field(o) = true
		case "false", "0", "no", "off":
			*field(o) = false
		default:
			return fmt.Errorf("%q is not a boolean", v)
		}
		return nil
	}
}

func integer(field func(*Options) *int) func(*Options, string) error {
	return func(o *Options, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil {
			return fmt.Errorf("%q is not an integer", v)
		}
		*field(o) = n
		return nil
	}
}

func seconds(field func(*Options) *time.Duration) func(*Options, string) error {
	return func(o *Options, v string) error {
		n, err := strconv.ParseFloat(v, 64)
		if err != nil || n < 0 || n > 1e9 {
			return fmt.Errorf("%q is not a number of seconds", v)
		}
		*field(o) = time.Duration(n * float64(time.Second))
		return nil
	}
}
