// Package rabbit carries rpc messages over AMQP 0-9-1. It is the only importer of
// the AMQP library.
//
// A Transport keeps two connections, one that only consumes and one that only
// publishes, so that a broker that blocks publishers still delivers. Each is
// dialled at its first use, kept open, and dialled again after a loss with
// oslo.messaging's back-off; exchanges, queues, bindings and consumers are then
// declared again (oslo_messaging/_drivers/impl_rabbit.py).
//
// The library can hang: on a peer that stops reading, on notification channels
// that nobody drains, in Close. Hence here
//   - the socket is ours: every read and write has a deadline (socket.go);
//   - every request to the broker runs under a watchdog that closes the socket
//     (session.do);
//   - notification channels are as large as what can be outstanding on them;
//   - one goroutine owns each AMQP channel.
package rabbit
