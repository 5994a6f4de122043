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
	var b []byte
	for _, field := range [][2]string{{"LOGIN", a.User}, {"PASSWORD", a.Password.Reveal()}} {
		b = append(b, byte(len(field[0])))
		b = append(b, field[0]...)
		b = append(b, 'S')                                          // long string
		b = binary.BigEndian.AppendUint32(b, uint32(len(field[1]))) //nolint:gosec // a password of 4 GiB does not occur
		b = append(b, field[1]...)
	}
	return string(b)
}

// external authenticates by the client certificate.
type external struct{}

// Mechanism implements amqp.Authentication.
func (external) Mechanism() string { return "EXTERNAL" }

// Response implements amqp.Authentication.
func (external) Response() string { return "" }
