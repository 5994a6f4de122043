// Package capture reads the captured messages under internal/nova/testdata, for contract
// tests.
package capture

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// Message is one published message.
type Message struct {
	File       string // name of the operation, e.g. "server-create"
	Line       int
	Exchange   string          `json:"exchange"`    // "" for replies
	RoutingKey string          `json:"routing_key"` //
	Body       json.RawMessage // the inner message, decoded from oslo.message

	Inner
}

// Inner are the keys of the inner message that tests look at.
type Inner struct {
	// Requests.
	Method    string                     `json:"method"`
	Namespace *string                    `json:"namespace"`
	Version   string                     `json:"version"`
	Args      map[string]json.RawMessage `json:"args"`
	MsgID     string                     `json:"_msg_id"` // of requests and their replies
	// Replies.
	Result  json.RawMessage `json:"result"`
	Failure *string         `json:"failure"`
	// Notifications.
	EventType   string          `json:"event_type"`
	PublisherID string          `json:"publisher_id"`
	Priority    string          `json:"priority"`
	Payload     json.RawMessage `json:"payload"`
}

// Context gives the request context of a message, without the "_context_" of its keys.
func (m *Message) Context(t testing.TB) map[string]json.RawMessage {
	t.Helper()
	var all map[string]json.RawMessage
	if err := json.Unmarshal(m.Body, &all); err != nil {
		t.Fatal(err)
	}
	out := map[string]json.RawMessage{}
	for k, v := range all {
		if name, ok := strings.CutPrefix(k, "_context_"); ok {
			out[name] = v
		}
	}
	return out
}

// Dir is the directory of the captures of a release ("zed", "epoxy").
func Dir(release string) string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "testdata", release)
}

// loaded keeps what Load has read: release → []Message.
var loaded sync.Map

// Load reads all captured messages of a release, operation by operation. They are shared:
// a test must not change them.
func Load(t testing.TB, release string) []Message {
	t.Helper()
	if all, ok := loaded.Load(release); ok {
		return all.([]Message)
	}
	files, err := filepath.Glob(filepath.Join(Dir(release), "*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures of %s: %v", release, err)
	}
	var all []Message
	for _, f := range files {
		all = append(all, read(t, f)...)
	}
	loaded.Store(release, all)
	return all
}

// Operation reads the messages of one operation.
func Operation(t testing.TB, release, name string) []Message {
	t.Helper()
	return read(t, filepath.Join(Dir(release), name+".jsonl"))
}

// maxLine is more than the longest captured message.
const maxLine = 4 << 20

func read(t testing.TB, path string) []Message {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimSuffix(filepath.Base(path), ".jsonl")
	in := bufio.NewScanner(bytes.NewReader(b))
	in.Buffer(nil, maxLine)
	var out []Message
	for line := 1; in.Scan(); line++ {
		m := Message{File: name, Line: line}
		var outer struct {
			Exchange   string          `json:"exchange"`
			RoutingKey string          `json:"routing_key"`
			Body       json.RawMessage `json:"body"`
		}
		if err := json.Unmarshal(in.Bytes(), &outer); err != nil {
			t.Fatalf("%s line %d: %v", path, line, err)
		}
		var envelope struct {
			Message json.RawMessage `json:"oslo.message"`
		}
		if err := json.Unmarshal(outer.Body, &envelope); err != nil {
			t.Fatalf("%s line %d: %v", path, line, err)
		}
		m.Exchange, m.RoutingKey, m.Body = outer.Exchange, outer.RoutingKey, envelope.Message
		if m.Body == nil {
			m.Body = outer.Body
		}
		if err := json.Unmarshal(m.Body, &m.Inner); err != nil {
			t.Fatalf("%s line %d: %v", path, line, err)
		}
		out = append(out, m)
	}
	if err := in.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// Objects calls fn with every versioned object in a JSON text, at any depth, outer
// objects first.
func Objects(raw json.RawMessage, fn func(class string, raw json.RawMessage)) {
	trimmed := bytes.TrimSpace(raw)
	if len(trimmed) == 0 {
		return
	}
	switch trimmed[0] {
	case '{':
		var m map[string]json.RawMessage
		if json.Unmarshal(trimmed, &m) != nil {
			return
		}
		var class string
		if name, ok := m["nova_object.name"]; ok && json.Unmarshal(name, &class) == nil {
			fn(class, raw)
		}
		for _, v := range m {
			Objects(v, fn)
		}
	case '[':
		var l []json.RawMessage
		if json.Unmarshal(trimmed, &l) != nil {
			return
		}
		for _, v := range l {
			Objects(v, fn)
		}
	}
}
