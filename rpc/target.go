package rpc

import "time"

// Target says where a request goes.
type Target struct {
	Topic     string // "conductor"
	Server    string // host of one server of the topic; "" is any of them
	Namespace string // "" is the null namespace
	Version   string // version that the server must offer; "" is "1.0"
	// Timeout bounds a call as a whole; 0 takes the client's default.
	Timeout time.Duration
	// Monitor asks the server for a sign of life more often than this
	// (call_monitor_timeout, whole seconds); 0 means no monitoring.
	Monitor time.Duration
}

// routingKey is "topic" or "topic.server".
func (t Target) routingKey() string {
	if t.Server == "" {
		return t.Topic
	}
	return t.Topic + "." + t.Server
}

// fanoutExchange is the exchange that reaches every server of a topic.
func fanoutExchange(topic string) Exchange {
	return Exchange{Name: topic + "_fanout", Kind: ExchangeFanout}
}
