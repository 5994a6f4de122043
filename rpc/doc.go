// Package rpc speaks oslo.messaging: it serves the methods of endpoints, calls
// the methods of other services and sends notifications. It knows no Nova type
// and no broker; a Transport (rpc/rabbit, or rpc/rpctest in unit tests) carries
// the bytes.
//
// Contracts that callers rely on:
//   - a Server runs every message at most once: it is acknowledged to the broker
//     before its handler starts, and a repeated _unique_id is dropped;
//   - handlers run concurrently and start in the order of arrival; what must be
//     serialised per instance is serialised by the handlers;
//   - the request context of a message travels in ctx (internal/reqctx), in both
//     directions, unchanged;
//   - every wait ends with the context that was given.
//
// The wire format is that of oslo.messaging 14 to 18 (_drivers/common.py,
// _drivers/amqpdriver.py, rpc/dispatcher.py).
package rpc
