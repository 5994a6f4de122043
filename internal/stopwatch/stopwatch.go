// Package stopwatch tells how long an operation waited for others and how long
// it worked itself. The watch travels in the context; whoever makes a request to
// another service brackets it with Wait. It imports nothing of ours.
package stopwatch

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Kinds of waiting, as they appear in log fields ("wait_conductor_ms"). Waits for
// OpenStack services carry the name of their configuration section.
const (
	Conductor = "conductor"
	Neutron   = "neutron"
	Glance    = "glance"
	Placement = "placement"
	Plug      = "plug" // the network-vif-plugged event
	Queue     = "queue"
	Guest     = "guest" // until a guest has halted, or the kernel has ended it
)

type span struct{ from, to time.Time }

// Watch collects the waiting times of one operation. Spans of different kinds may
// overlap: an operation's own time is what no span covers.
type Watch struct {
	start time.Time

	mu    sync.Mutex // guards spans
	spans map[string][]span
}

type key struct{}

// With starts a watch and attaches it to the context.
func With(ctx context.Context) (context.Context, *Watch) {
	w := &Watch{start: time.Now(), spans: map[string][]span{}}
	return context.WithValue(ctx, key{}, w), w
}

// Wait notes that waiting of a kind begins; the returned function ends it.
// Without a watch in the context it does nothing.
func Wait(ctx context.Context, kind string) func() {
	w, ok := ctx.Value(key{}).(*Watch)
	if !ok {
		return func() {}
	}
	from := time.Now()
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.spans[kind] = append(w.spans[kind], span{from, time.Now()})
	}
}

// Fields gives the log fields of the watch in the context, none if there is no watch.
func Fields(ctx context.Context) map[string]any {
	if w, ok := ctx.Value(key{}).(*Watch); ok {
		return w.Fields()
	}
	return nil
}

// Fields gives log fields in milliseconds: elapsed_ms, own_ms (covered by no wait)
// and wait_<kind>_ms for every kind that occurred.
func (w *Watch) Fields() map[string]any {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []span
	fields := map[string]any{}
	for kind, spans := range w.spans {
		fields["wait_"+kind+"_ms"] = covered(spans).Milliseconds()
		all = append(all, spans...)
	}
	elapsed := time.Since(w.start)
	fields["elapsed_ms"] = elapsed.Milliseconds()
	fields["own_ms"] = (elapsed - covered(all)).Milliseconds()
	return fields
}

// covered is the length of the union of spans.
func covered(spans []span) time.Duration {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b span) int { return a.from.Compare(b.from) })
	var total time.Duration
	var end time.Time
	for _, s := range spans {
		if s.from.Before(end) {
			s.from = end
		}
		if s.to.After(s.from) {
			total += s.to.Sub(s.from)
			end = s.to
		}
	}
	return total
}
