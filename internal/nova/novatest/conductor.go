package novatest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// Fields are an object's fields as they are on the wire.
type Fields map[string]json.RawMessage

// Conductor implements conductor.RPC. The zero value is not usable; see New.
type Conductor struct {
	mu         sync.Mutex // guards the fields below
	instances  map[string]Fields
	caches     map[string]string // network_info by instance
	vifs       map[string]string // instance by address
	nodes      map[string]Fields
	services   []Fields
	migrations []Fields
	bdms       []json.RawMessage
	taskLogs   map[string]bool // by taskKey
	faults     []Fields
	actions    []*action // the newest last
	casts      []Cast
	log        []string
	failures   map[string][]error
	hooks      map[string]func()
	nextID     int
}

// Cast is a message without an answer.
type Cast struct {
	Topic, Method string
	Args          map[string]json.RawMessage
}

// New returns a conductor whose database is empty.
func New() *Conductor {
	return &Conductor{
		instances: map[string]Fields{}, caches: map[string]string{}, vifs: map[string]string{}, taskLogs: map[string]bool{}, nodes: map[string]Fields{},
		failures: map[string][]error{}, hooks: map[string]func(){}, nextID: 1,
	}
}

// Raw encodes a value for Fields.
func Raw(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a mistake of the test
	}
	return b
}

// Failure is a remote exception of nova.exception.
func Failure(class string) error {
	return &rpc.Failure{Class: class, Module: exception.ModuleNova, Message: class, Args: []any{}, Kwargs: map[string]any{}}
}

// Fail makes the next calls of "Class.method" fail, one each.
func (c *Conductor) Fail(call string, errs ...error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures[call] = append(c.failures[call], errs...)
}

// On has f run, without locks, when an entry of the log begins with prefix, before the
// answer is given. It stays until it is replaced; nil removes it.
func (c *Conductor) On(prefix string, f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f == nil {
		delete(c.hooks, prefix)
		return
	}
	c.hooks[prefix] = f
}

// Log returns what was asked, one line each: "Class.method", for saves with the changes
// and the expected states.
func (c *Conductor) Log() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.log)
}

// LogOf returns the lines of the log that begin with one of the prefixes.
func (c *Conductor) LogOf(prefixes ...string) []string {
	var found []string
	for _, line := range c.Log() {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(line, p) }) {
			found = append(found, line)
		}
	}
	return found
}

// ClearLog forgets what was asked.
func (c *Conductor) ClearLog() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log, c.casts, c.faults = nil, nil, nil
}

// Casts returns the messages without an answer.
func (c *Conductor) Casts(method string) []Cast {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []Cast
	for _, one := range c.casts {
		if one.Method == method {
			found = append(found, one)
		}
	}
	return found
}

// Faults returns the messages of the faults that were stored.
func (c *Conductor) Faults() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	messages := make([]string, 0, len(c.faults))
	for _, f := range c.faults {
		messages = append(messages, text(f["message"]))
	}
	return messages
}

// Call implements conductor.RPC.
func (c *Conductor) Call(ctx context.Context, _ rpc.Target, method string, args map[string]any) (json.RawMessage, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	var in request
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	in.from = reqctx.From(ctx)
	switch method {
	case "ping":
		return Raw(map[string]any{"service": "conductor", "arg": args["arg"]}), nil
	case "object_class_action_versions":
		in.call = in.Class + "." + in.Method
	case "object_action":
		in.call = in.Object.Name + "." + in.Method
	default:
		return nil, fmt.Errorf("conductor has no method %s", method)
	}
	return c.serve(&in)
}

// serve answers one call of an object's method.
func (c *Conductor) serve(in *request) (json.RawMessage, error) {
	line := in.line()
	c.mu.Lock()
	c.log = append(c.log, line)
	var hook func()
	for prefix, f := range c.hooks {
		if strings.HasPrefix(line, prefix) {
			hook = f
		}
	}
	c.mu.Unlock()
	if hook != nil {
		hook()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if errs := c.failures[in.call]; len(errs) > 0 {
		c.failures[in.call] = errs[1:]
		if errs[0] != nil {
			return nil, errs[0]
		}
	}
	handler, ok := handlers[in.call]
	if !ok {
		return nil, fmt.Errorf("the fake conductor does not know %s", in.call)
	}
	return handler(c, in)
}

// Cast implements conductor.RPC.
func (c *Conductor) Cast(ctx context.Context, t rpc.Target, method string, args map[string]any) error {
	return c.cast(ctx, t, method, args)
}

// Fanout implements conductor.RPC.
func (c *Conductor) Fanout(ctx context.Context, t rpc.Target, method string, args map[string]any) error {
	return c.cast(ctx, t, method, args)
}

func (c *Conductor) cast(ctx context.Context, t rpc.Target, method string, args map[string]any) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	one := Cast{Topic: t.Topic, Method: method}
	if err := json.Unmarshal(raw, &one.Args); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log = append(c.log, "cast "+method)
	if errs := c.failures[method]; len(errs) > 0 {
		c.failures[method] = errs[1:]
		return errs[0]
	}
	c.casts = append(c.casts, one)
	return nil
}

// text reads a string; "" for null.
func text(raw json.RawMessage) string {
	var s string
	_ = json.Unmarshal(raw, &s) // null and absent are ""
	return s
}
