package rpc

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// newID returns 32 hex digits, as Python's uuid4().hex.
func newID() string {
	id := uuid.New()
	return hex.EncodeToString(id[:])
}

// request is the inner message of a call or cast (_drivers/amqpdriver.py).
type request struct {
	method    string
	args      json.RawMessage
	namespace string
	version   string
	uniqueID  string
	context   map[string]json.RawMessage
	// Calls only.
	msgID   string
	replyTo string
	monitor int // seconds; 0 is null
	// Received requests only.
	expiration time.Duration // what the caller waits at most; 0 is unknown
	refusal    *Failure      // answer to a call that could not be read
}

// encode gives the envelope.
func (r *request) encode() ([]byte, error) {
	var o object
	o.add("method", r.method)
	o.raw("args", r.args)
	if r.namespace != "" {
		o.add("namespace", r.namespace)
	}
	o.add("version", r.version)
	if r.msgID != "" {
		o.add("_msg_id", r.msgID)
		o.add("_reply_q", r.replyTo)
		if r.monitor > 0 {
			o.add("_timeout", r.monitor)
		} else {
			o.add("_timeout", nil)
		}
	}
	o.add("_unique_id", r.uniqueID)
	addContext(&o, r.context)
	inner, err := o.bytes()
	if err != nil {
		return nil, err
	}
	return wrap(inner), nil
}

// addContext writes the context in Nova's order, unknown keys sorted behind it.
func addContext(o *object, context map[string]json.RawMessage) {
	for _, key := range contextOrder {
		if v, ok := context[key]; ok {
			o.raw(contextPrefix+key, v)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(context)) {
		if !slices.Contains(contextOrder, key) {
			o.raw(contextPrefix+key, context[key])
		}
	}
}

// decodeRequest reads a call or cast. Next to an error it returns the request as
// far as it was understood, so that a call with a bad member can be answered.
func decodeRequest(body []byte) (*request, error) {
	fields, err := decodeInner(body)
	if err != nil {
		return &request{}, err
	}
	r := &request{version: "1.0", context: map[string]json.RawMessage{}}
	for key, v := range fields {
		if name, ok := strings.CutPrefix(key, contextPrefix); ok {
			r.context[name] = v
		}
	}
	// These two first: they decide whether anybody waits for an answer.
	err = errors.Join(
		optional(fields, "_msg_id", &r.msgID),
		optional(fields, "_reply_q", &r.replyTo),
		optional(fields, "_unique_id", &r.uniqueID),
	)
	if err != nil {
		return r, malformed("message", err)
	}
	r.monitor = monitorSeconds(fields["_timeout"])
	err = errors.Join(
		optional(fields, "method", &r.method),
		optional(fields, "namespace", &r.namespace),
		optional(fields, "version", &r.version),
	)
	if err == nil && r.method == "" {
		err = errors.New("no method")
	}
	if err != nil {
		return r, malformed("method", err)
	}
	r.args = fields["args"]
	return r, nil
}

// arguments splits the args object; absent and null are none.
func (r *request) arguments() (Args, error) {
	args := Args{}
	if len(r.args) == 0 {
		return args, nil
	}
	if err := json.Unmarshal(r.args, &args); err != nil {
		return nil, malformed("args", err)
	}
	if args == nil { // null
		args = Args{}
	}
	return args, nil
}

// optional reads a member that may be absent or null.
func optional(fields map[string]json.RawMessage, key string, into *string) error {
	raw, ok := fields[key]
	if !ok || bytes.Equal(raw, []byte("null")) {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	return nil
}

// monitorSeconds reads _timeout. Upstream takes int(value) and ignores what is
// no number (dispatcher.py:RPCDispatcher._watchdog).
func monitorSeconds(raw json.RawMessage) int {
	var n json.Number
	if len(raw) == 0 || json.Unmarshal(raw, &n) != nil {
		return 0
	}
	seconds, err := n.Float64()
	if err != nil || seconds < 0 || seconds > 1<<31 {
		return 0
	}
	return int(seconds)
}

// reply is the inner message of an answer (AMQPIncomingMessage._send_reply). One
// with ending false is a sign of life of a monitored call.
type reply struct {
	result   json.RawMessage
	failure  *Failure
	ending   bool
	msgID    string
	uniqueID string
}

// encode gives the envelope.
func (r *reply) encode() ([]byte, error) {
	var o object
	o.raw("result", r.result)
	if r.failure == nil {
		o.add("failure", nil)
	} else {
		text, err := r.failure.encode()
		if err != nil {
			return nil, err
		}
		o.add("failure", string(text))
	}
	o.add("ending", r.ending)
	o.add("_msg_id", r.msgID)
	o.add("_unique_id", r.uniqueID)
	inner, err := o.bytes()
	if err != nil {
		return nil, err
	}
	return wrap(inner), nil
}

// decodeReply reads an answer.
func decodeReply(body []byte) (*reply, error) {
	fields, err := decodeInner(body)
	if err != nil {
		return nil, err
	}
	r := &reply{result: fields["result"]}
	var failure string
	err = errors.Join(
		optional(fields, "_msg_id", &r.msgID),
		optional(fields, "_unique_id", &r.uniqueID),
		optional(fields, "failure", &failure),
	)
	if err == nil && r.msgID == "" {
		err = errors.New("no _msg_id")
	}
	if raw, ok := fields["ending"]; ok && err == nil {
		err = json.Unmarshal(raw, &r.ending)
	}
	if err != nil {
		return nil, malformed("reply", err)
	}
	if failure != "" {
		r.failure = decodeFailure(failure)
	}
	return r, nil
}
