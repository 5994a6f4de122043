package config

// rabbitSection is oslo.messaging's section for RabbitMQ.
const rabbitSection = "oslo_messaging_rabbit"

// messaging declares what concerns RPC and notifications (oslo_messaging/_drivers/impl_rabbit.py, amqp.py, notify/notifier.py).
func (r *registry) messaging() {
	c := r.config
	s := r.section(rabbitSection, "RabbitMQ. What concerns queues must be as on the controllers, or the broker refuses the declarations.")
	queueOptions(s, &c.RabbitMQ)
	connectionOptions(s, &c.RabbitMQ)
	tlsOptions(s, &c.RabbitMQ)

	n := &c.MessagingNotifications
	s = r.section("oslo_messaging_notifications", "How notifications leave.")
	s.texts(&n.Driver, "driver", "How to send notifications: messagingv2, messaging, log, noop. Nothing leaves unless it is set.").was(defaultSection, "notification_driver")
	s.secretText(&n.TransportURL, "transport_url", "", "Message bus of notifications.").was(defaultSection, "notification_transport_url").
		none("[DEFAULT] transport_url")
	s.list(&n.Topics, "topics", "notifications", "Topics of notifications in the old format.").was("rpc_notifier2", "").was(defaultSection, "notification_topics")
	s.integer(&n.Retry, "retry", -1, "How often a notification that could not be sent is tried again; -1 is for ever.").atLeast(-1)

	o := &c.Notifications
	s = r.section("notifications", "Which notifications there are.")
	s.enum(&o.NotificationFormat, "notification_format", "unversioned", "Format of notifications.", "unversioned", "versioned", "both").was(defaultSection, "")
	s.enum(&o.NotifyOnStateChange, "notify_on_state_change", "", "Which changes of state send compute.instance.update.", "vm_state", "vm_and_task_state").
		was(defaultSection, "").none("none")
	s.enum(&o.DefaultLevel, "default_level", "INFO", "Level of notifications without one.", "DEBUG", "INFO", "WARN", "ERROR", "CRITICAL").was(defaultSection, "default_notification_level")
	s.list(&o.VersionedNotificationsTopics, "versioned_notifications_topics", "versioned_notifications", "Topics of notifications in the versioned format.")
	s.boolean(&o.BDMsInNotifications, "bdms_in_notifications", false, "Whether versioned notifications hold the block device mappings.")
	s.boolean(&o.IncludeShareMapping, "include_share_mapping", false, "Whether versioned notifications hold the share mappings.").from("2025.1")
}

func queueOptions(s *section, q *RabbitMQ) {
	s.boolean(&q.AMQPAutoDelete, "amqp_auto_delete", false, "Whether queues go with their last consumer.").was(defaultSection, "")
	s.boolean(&q.AMQPDurableQueues, "amqp_durable_queues", false, "Whether queues survive a restart of the broker.").
		was(defaultSection, "").was(defaultSection, "rabbit_durable_queues")
	s.boolean(&q.DirectMandatoryFlag, "direct_mandatory_flag", true, "Whether the broker returns answers that reach no queue.")
	s.boolean(&q.EnableCancelOnFailover, "enable_cancel_on_failover", false, "Whether consumers ask to be cancelled when a mirrored queue moves.")
	s.boolean(&q.RabbitHAQueues, "rabbit_ha_queues", false, "Whether queues ask to be mirrored, as old brokers want it.").was(defaultSection, "")
	s.integer(&q.RabbitQoSPrefetchCount, "rabbit_qos_prefetch_count", 0, "Messages that the broker sends ahead; 0 is no limit.").atLeast(0).atMost(65535)
	s.boolean(&q.RabbitQuorumQueue, "rabbit_quorum_queue", false, "Whether lasting queues are quorum queues.")
	s.integer(&q.RabbitQuorumDeliveryLimit, "rabbit_quorum_delivery_limit", 0, "Deliveries of one message in a quorum queue; 0 is no limit.").atLeast(0)
	s.integer(&q.RabbitQuorumMaxMemoryBytes, "rabbit_quorum_max_memory_bytes", 0, "Bytes of a quorum queue in memory; 0 is no limit.").
		atLeast(0).was("", "rabbit_quroum_max_memory_bytes")
	s.integer(&q.RabbitQuorumMaxMemoryLength, "rabbit_quorum_max_memory_length", 0, "Messages of a quorum queue in memory; 0 is no limit.").
		atLeast(0).was("", "rabbit_quroum_max_memory_length")
	s.boolean(&q.RabbitStreamFanout, "rabbit_stream_fanout", false, "Whether fan-out messages go through streams.").from("2024.1")
	s.seconds(&q.RabbitTransientQueuesTTL, "rabbit_transient_queues_ttl", 1800, "Time that unused reply and fan-out queues are kept; 0 is for ever.").atLeast(0)
	s.boolean(&q.RabbitTransientQuorumQueue, "rabbit_transient_quorum_queue", false, "Whether reply and fan-out queues are quorum queues.").from("2024.1")
	s.boolean(&q.UseQueueManager, "use_queue_manager", false, "Whether reply and fan-out queues have names that last.").from("2024.1")
	s.text(&q.Hostname, "hostname", "", "Host part of such names.").found("the system's host name", hostname).from("2024.1")
	s.text(&q.Processname, "processname", "compute-agent", "Process part of such names.").from("2024.1")
}

func connectionOptions(s *section, q *RabbitMQ) {
	s.seconds(&q.HeartbeatTimeoutThreshold, "heartbeat_timeout_threshold", 60, "Silence after which the broker counts as gone; 0 turns heartbeats off.").atLeast(0).atMost(65535)
	s.integer(&q.HeartbeatRate, "heartbeat_rate", 3, "Checks within that time. oslo.messaging's default is 2 before 2024.1.").atLeast(1)
	s.text(&q.KombuCompression, "kombu_compression", "", "Compression of messages: gzip or bz2; unset is none.")
	s.enum(&q.KombuFailoverStrategy, "kombu_failover_strategy", "round-robin", "How the next broker is chosen.", "round-robin", "shuffle")
	s.seconds(&q.KombuMissingConsumerRetryTimeout, "kombu_missing_consumer_retry_timeout", 60, "Time that an answer without a queue is tried again.").
		was("", "kombu_reconnect_timeout").atLeast(0)
	s.fraction(&q.KombuReconnectDelay, "kombu_reconnect_delay", "1.0", "Pause before a new connection.").was(defaultSection, "").atLeast(0).atMost(4.5)
	s.fraction(&q.KombuReconnectSplay, "kombu_reconnect_splay", "0.0", "Longest random addition to that pause.").atLeast(0).from("2025.1")
	s.seconds(&q.RabbitIntervalMax, "rabbit_interval_max", 30, "Longest wait between two tries to connect.").atLeast(0)
	s.enum(&q.RabbitLoginMethod, "rabbit_login_method", "AMQPLAIN", "How to log in.", "PLAIN", "AMQPLAIN", "EXTERNAL", "RABBIT-CR-DEMO").was(defaultSection, "")
	s.seconds(&q.RabbitRetryBackoff, "rabbit_retry_backoff", 2, "Time by which each wait is longer than the one before.").was(defaultSection, "").atLeast(0)
	s.seconds(&q.RabbitRetryInterval, "rabbit_retry_interval", 1, "First wait.").atLeast(0)
}

func tlsOptions(s *section, q *RabbitMQ) {
	s.boolean(&q.SSL, "ssl", false, "Whether to connect with TLS. The port stays 5672 unless the URL has one.").was("", "rabbit_use_ssl")
	s.text(&q.SSLCAFile, "ssl_ca_file", "", "File with the certificate authorities to trust; unset is the system's.").was("", "kombu_ssl_ca_certs")
	s.text(&q.SSLCertFile, "ssl_cert_file", "", "File with a client certificate.").was("", "kombu_ssl_certfile")
	s.text(&q.SSLKeyFile, "ssl_key_file", "", "File with the client certificate's key.").was("", "kombu_ssl_keyfile")
	s.boolean(&q.SSLEnforceHostnameVerification, "ssl_enforce_hostname_verification", false, "Whether the broker's certificate must be for its"+
		" host name. oslo.messaging's default is true from 2026.2.").from("2026.2")
	s.text(&q.SSLVersion, "ssl_version", "", "Oldest TLS version to speak; unset is the library's choice.").was("", "kombu_ssl_version")
}
