package rpc

import "slices"

// recentSize is how many _unique_id values a listener remembers. oslo.messaging
// keeps 16 (_drivers/amqp.py:_MsgIdCache); after a lost connection more messages
// than that can come twice.
const recentSize = 256

// recent remembers the last ids of a listener. The zero value is empty; it is
// not safe for concurrent use.
type recent struct {
	ids  [recentSize]string
	next int
}

// seen tells whether id is among the last ones, and remembers it otherwise. A
// message without an id is never a repetition.
func (r *recent) seen(id string) bool {
	if id == "" {
		return false
	}
	if slices.Contains(r.ids[:], id) {
		return true
	}
	r.ids[r.next] = id
	r.next = (r.next + 1) % recentSize
	return false
}
