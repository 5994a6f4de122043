package rabbit

import (
	"encoding/binary"

	"github.com/streadway/amqp"
)

// mechanisms gives the SASL mechanisms for a host, the preferred one first. The
// broker may not offer AMQPLAIN; PLAIN says the same.
func mechanisms(method string, h Host) []amqp.Authentication {
	plain := &amqp.PlainAuth{Username: h.User, Password: h.Password.Reveal()}
	switch method {
	case "EXTERNAL":
		return []amqp.Authentication{external{}}
	case "PLAIN":
		return []amqp.Authentication{plain}
	default:
		return []amqp.Authentication{amqplain(h), plain}
	}
}

// amqplain is RabbitMQ's AMQPLAIN: a field table without its length. (The
// library's own encoding of it is refused by brokers.)
type amqplain Host

// Mechanism implements amqp.Authentication.
func (amqplain) Mechanism() string { return "AMQPLAIN" }

// Response implements amqp.Authentication.
func (a amqplain) Response() string {
	// A name with its length, S for a long string, the value with its length.
	b := appendLong([]byte("\x05LOGINS"), a.User)
	return string(appendLong(append(b, "\x08PASSWORDS"...), a.Password.Reveal()))
}

func appendLong(b []byte, value string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(value))) //nolint:gosec // no credential has 4 GiB
	return append(b, value...)
}

// external authenticates by the client certificate.
type external struct{}

// Mechanism implements amqp.Authentication.
func (external) Mechanism() string { return "EXTERNAL" }

// Response implements amqp.Authentication.
func (external) Response() string { return "" }
