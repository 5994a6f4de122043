package rabbit

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Host is one broker of a transport_url.
type Host struct {
	Name     string // host name or address, without brackets
	Port     int
	User     string
	Password reqctx.Secret
}

// Address is "host:port", without the credentials.
func (h Host) Address() string { return net.JoinHostPort(h.Name, strconv.Itoa(h.Port)) }

// Options are the settings of a Transport; the names in comments are those of
// section [oslo_messaging_rabbit]. Start from Defaults.
//
// Durable, AutoDelete and everything that ends in queue arguments must equal the
// control plane's: the objects are shared.
type Options struct {
	Hosts            []Host
	VirtualHost      string // "/"
	FailoverStrategy string // kombu_failover_strategy: "round-robin" or "shuffle"
	LoginMethod      string // rabbit_login_method: "AMQPLAIN", "PLAIN" or "EXTERNAL"
	ConnectionName   string // shown by the broker; "" is "compute-agent:<pid>:<uuid>"
	TLS              TLS

	Heartbeat time.Duration // heartbeat_timeout_threshold; below a second the broker's own value is used

	RetryInterval   time.Duration // rabbit_retry_interval: first wait
	RetryBackoff    time.Duration // rabbit_retry_backoff: added per round of hosts
	IntervalMax     time.Duration // rabbit_interval_max: ceiling
	ReconnectDelay  time.Duration // kombu_reconnect_delay: before each reconnect
	ReconnectSplay  time.Duration // kombu_reconnect_splay: random part of it
	Compression     string        // kombu_compression: "", "gzip" or "bz2"
	Prefetch        int           // rabbit_qos_prefetch_count; 0 is unlimited
	DirectMandatory bool          // direct_mandatory_flag

	Durable               bool          // amqp_durable_queues
	AutoDelete            bool          // amqp_auto_delete
	HAQueues              bool          // rabbit_ha_queues
	QuorumQueue           bool          // rabbit_quorum_queue
	TransientQuorumQueue  bool          // rabbit_transient_quorum_queue
	QuorumDeliveryLimit   int           // rabbit_quorum_delivery_limit
	QuorumMaxMemoryLength int           // rabbit_quorum_max_memory_length
	QuorumMaxMemoryBytes  int           // rabbit_quorum_max_memory_bytes
	StreamFanout          bool          // rabbit_stream_fanout
	CancelOnFailover      bool          // enable_cancel_on_failover
	TransientTTL          time.Duration // rabbit_transient_queues_ttl, whole seconds; 0 is no expiry
}

// TLS are the ssl_* options.
type TLS struct {
	Enabled  bool   // ssl
	Version  string // ssl_version: "", "TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3" or "SSLv23" (any)
	CAFile   string // ssl_ca_file; "" is the system's trust store
	CertFile string // ssl_cert_file
	KeyFile  string // ssl_key_file
	// VerifyHostname checks the broker's name against its certificate, if CAFile is
	// set (ssl_enforce_hostname_verification; libraries before 2026.2 never do).
	VerifyHostname bool
}

const (
	defaultPort = 5672
	// defaultHost is what transport_url rabbit:// means.
	defaultHost = "localhost"
)

// Defaults gives the defaults of oslo.messaging with the broker at
// guest:guest@localhost:5672.
func Defaults() Options {
	return Options{
		Hosts:            []Host{{Name: defaultHost, Port: defaultPort, User: "guest", Password: "guest"}},
		VirtualHost:      "/",
		FailoverStrategy: "round-robin",
		LoginMethod:      "AMQPLAIN",
		Heartbeat:        60 * time.Second,
		RetryInterval:    time.Second,
		RetryBackoff:     2 * time.Second,
		IntervalMax:      30 * time.Second,
		ReconnectDelay:   time.Second,
		DirectMandatory:  true,
		TransientTTL:     1800 * time.Second,
		TLS:              TLS{VerifyHostname: true},
	}
}

// check refuses what cannot work, naming the option.
func (o Options) check() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(o.Hosts) == 0 {
		add("transport_url: no host")
	}
	for _, h := range o.Hosts {
		if h.Name == "" || h.Port < 1 || h.Port > 65535 {
			add("transport_url: host %q port %d is not valid", h.Name, h.Port)
		}
	}
	switch o.LoginMethod {
	case "AMQPLAIN", "PLAIN", "EXTERNAL":
	default:
		add("rabbit_login_method %q: want AMQPLAIN, PLAIN or EXTERNAL", o.LoginMethod)
	}
	switch o.FailoverStrategy {
	case "round-robin", "shuffle":
	default:
		add("kombu_failover_strategy %q: want round-robin or shuffle", o.FailoverStrategy)
	}
	switch o.Compression {
	case "", "gzip", "bz2":
	default:
		add("kombu_compression %q: want gzip, bz2 or nothing", o.Compression)
	}
	if _, err := o.TLS.versions(); err != nil {
		errs = append(errs, err)
	}
	if (o.TLS.CertFile == "") != (o.TLS.KeyFile == "") {
		add("ssl_cert_file and ssl_key_file must be set together")
	}
	if o.HAQueues && (o.QuorumQueue || o.TransientQuorumQueue) {
		add("rabbit_ha_queues and quorum queues exclude each other")
	}
	if o.StreamFanout && (o.Prefetch <= 0 || !o.TransientQuorumQueue) {
		add("rabbit_stream_fanout needs rabbit_qos_prefetch_count > 0 and rabbit_transient_quorum_queue = true")
	}
	if o.RetryInterval <= 0 || o.IntervalMax <= 0 || o.RetryBackoff < 0 || o.ReconnectDelay < 0 || o.ReconnectSplay < 0 {
		add("rabbit_retry_interval and rabbit_interval_max must be positive, the other intervals not negative")
	}
	if o.Heartbeat < 0 || o.Prefetch < 0 || o.TransientTTL < 0 ||
		o.QuorumDeliveryLimit < 0 || o.QuorumMaxMemoryLength < 0 || o.QuorumMaxMemoryBytes < 0 {
		add("heartbeat, prefetch, ttl and quorum limits must not be negative")
	}
	return errors.Join(errs...)
}
