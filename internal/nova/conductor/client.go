// Package conductor asks Nova's conductor, the agent's only way to Nova's database.
//
// Every method sends the smallest message that the conductor takes: the object's
// identity and the fields that change (nova/conductor/manager.py:ConductorManager).
// Remote methods of objects return what else changed in the row; that is stored in the
// object. The request context of ctx travels along, so that work for a user is done
// with the user's context and periodic work with the agent's own (reqctx.From).
//
// A failure of the remote side is an *rpc.Failure in the chain; test it with
// exception.Is. No answer in time is rpc.ErrTimeout: the write may have happened.
package conductor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/stopwatch"
	"github.com/compute-agent/compute-agent/rpc"
)

// RPC is the part of rpc.Client that is used.
type RPC interface {
	// Call returns the method's result or the remote failure.
	Call(ctx context.Context, t rpc.Target, method string, args map[string]any) (json.RawMessage, error)
	// Cast sends a request without an answer.
	Cast(ctx context.Context, t rpc.Target, method string, args map[string]any) error
	// Fanout sends a request to every server of the topic.
	Fanout(ctx context.Context, t rpc.Target, method string, args map[string]any) error
}

// Targets of the services that the agent speaks to (nova/conductor/rpcapi.py,
// nova/scheduler/rpcapi.py, nova/baserpc.py).
var (
	conductorTarget   = rpc.Target{Topic: "conductor", Version: "3.0"}
	computeTaskTarget = rpc.Target{Topic: "conductor", Namespace: "compute_task", Version: "1.19"}
	schedulerTarget   = rpc.Target{Topic: "scheduler", Version: "4.2"}
	pingTarget        = rpc.Target{Topic: "conductor", Namespace: "baseapi", Version: "1.0"}
)

// Client calls the conductor as nova-compute of one release does. It is safe for
// concurrent use; the objects that are passed to it are not.
type Client struct {
	rpc     RPC
	release release.Release
}

// New returns a client that sends and asks for the object versions of a release.
func New(r RPC, rel release.Release) *Client { return &Client{rpc: r, release: rel} }

// WithRelease returns a client for another release.
func (c *Client) WithRelease(rel release.Release) *Client { return New(c.rpc, rel) }

// Release is the release that the client behaves like.
func (c *Client) Release() release.Release { return c.release }

// Pings of a start, as nova-compute does them (nova/conductor/api.py:wait_until_ready).
const (
	firstPingTimeout = 10 * time.Second
	firstPings       = 10
	laterPingTimeout = 60 * time.Second
)

// WaitReady asks until a conductor answers: ten times for 10 s, then for 60 s each. Only
// missing answers are asked again; it ends with ctx at the latest.
func (c *Client) WaitReady(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		t := pingTarget
		t.Timeout = laterPingTimeout
		if attempt <= firstPings {
			t.Timeout = firstPingTimeout
		}
		_, err := c.rpc.Call(ctx, t, "ping", map[string]any{"arg": "1.21 GigaWatts"})
		if err == nil {
			return nil
		}
		if !errors.Is(err, rpc.ErrTimeout) || ctx.Err() != nil {
			return fmt.Errorf("wait for the conductor: %w", err)
		}
		reqctx.Log(ctx).WithField("attempt", attempt).Warning("no conductor answers yet")
	}
}

// class calls a class method of an object (object_class_action_versions). args and
// kwargs go without the context.
func (c *Client) class(ctx context.Context, class, method string, args []any, kwargs map[string]any) (json.RawMessage, error) {
	if args == nil {
		args = []any{}
	}
	if kwargs == nil {
		kwargs = map[string]any{}
	}
	answered := stopwatch.Wait(ctx, stopwatch.Conductor)
	result, err := c.rpc.Call(ctx, conductorTarget, "object_class_action_versions", map[string]any{
		"objname": class, "objmethod": method, "object_versions": manifest(c.release, class), "args": args, "kwargs": kwargs,
	})
	answered()
	if err != nil {
		return nil, fmt.Errorf("%s.%s: %w", class, method, err)
	}
	return result, nil
}

// get calls a class method whose result is one object.
func get[T any](ctx context.Context, c *Client, class, method string, args []any, kwargs map[string]any) (*T, error) {
	result, err := c.class(ctx, class, method, args, kwargs)
	if err != nil {
		return nil, err
	}
	var out *T
	if err := json.Unmarshal(result, &out); err != nil {
		return nil, fmt.Errorf("read result of %s.%s: %w", class, method, err)
	}
	return out, nil
}

// list calls a class method whose result is a list object.
func list[T any](ctx context.Context, c *Client, class, method string, args []any, kwargs map[string]any) ([]*T, error) {
	result, err := c.class(ctx, class, method, args, kwargs)
	if err != nil {
		return nil, err
	}
	out, err := object.List[T](result)
	if err != nil {
		return nil, fmt.Errorf("read result of %s.%s: %w", class, method, err)
	}
	return out, nil
}

// action calls a method of an object (object_action); it returns the fields that the
// method changed and its result.
func (c *Client) action(ctx context.Context, o json.Marshaler, name, method string, args []any, kwargs map[string]any) (map[string]json.RawMessage, json.RawMessage, error) {
	if args == nil {
		args = []any{}
	}
	if kwargs == nil {
		kwargs = map[string]any{}
	}
	answered := stopwatch.Wait(ctx, stopwatch.Conductor)
	raw, err := c.rpc.Call(ctx, conductorTarget, "object_action", map[string]any{
		"objinst": o, "objmethod": method, "args": args, "kwargs": kwargs,
	})
	answered()
	if err != nil {
		return nil, nil, fmt.Errorf("%s.%s: %w", name, method, err)
	}
	var pair []json.RawMessage
	var updates map[string]json.RawMessage
	if err := json.Unmarshal(raw, &pair); err != nil || len(pair) != 2 {
		return nil, nil, fmt.Errorf("read result of %s.%s: not a pair of updates and result", name, method)
	}
	if err := json.Unmarshal(pair[0], &updates); err != nil {
		return nil, nil, fmt.Errorf("read updates of %s.%s: not an object", name, method)
	}
	return updates, pair[1], nil
}

// small builds the object that is sent for o: the identity fields as o has them now,
// and the changed ones.
func (c *Client) small(o object.Object, class string, identity []string, changes map[string]json.RawMessage) (*object.Generic, error) {
	g := &object.Generic{Header: object.New(class, c.release.ObjectVersion(class))}
	for _, name := range identity {
		raw, ok, err := object.Field(o, name)
		if err != nil {
			return nil, err
		}
		if ok {
			g.Data[name] = raw
		}
	}
	maps.Copy(g.Data, changes)
	g.Changes = slices.Sorted(maps.Keys(changes))
	return g, nil
}

// save sends the changed fields of an object and stores them and the updates in it. On
// an error the object is as it was.
func (c *Client) save(ctx context.Context, o object.Object, class string, identity []string, changes, kwargs map[string]any) error {
	raw, err := object.Encode(o, changes)
	if err != nil {
		return err
	}
	g, err := c.small(o, class, identity, raw)
	if err != nil {
		return err
	}
	updates, _, err := c.action(ctx, g, class, "save", nil, kwargs)
	if err != nil {
		return err
	}
	return stored(o, class, raw, updates)
}

// create sends a new object with the named fields, and stores the row that comes back.
func (c *Client) create(ctx context.Context, o object.Object, class string, fields []string) error {
	h := o.Head()
	if h.Class == "" {
		*h = object.New(class, c.release.ObjectVersion(class))
	}
	changes := make(map[string]json.RawMessage, len(fields))
	if err := object.Mark(o, fields...); err != nil {
		return err
	}
	for _, name := range fields {
		changes[name] = h.Data[name]
	}
	g, err := c.small(o, class, nil, changes)
	if err != nil {
		return err
	}
	updates, _, err := c.action(ctx, g, class, "create", nil, nil)
	if err != nil {
		return err
	}
	return stored(o, class, nil, updates)
}

// stored puts what was sent and what came back into the object. The change set is
// dropped: every message lists its own changes.
func stored(o object.Object, class string, sent, updates map[string]json.RawMessage) error {
	all := make(map[string]json.RawMessage, len(sent)+len(updates))
	maps.Copy(all, sent)
	maps.Copy(all, updates)
	if err := object.Apply(o, all); err != nil {
		return fmt.Errorf("read updates of %s: %w", class, err)
	}
	o.Head().Changes = nil
	return nil
}
