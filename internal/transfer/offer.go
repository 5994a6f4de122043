package transfer

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// ErrAborted ends a transfer that the other host gave up; the message says why.
var ErrAborted = errors.New("the other host gave up")

// lastWord is how long a connection has to say why it ends.
const lastWord = 2 * time.Second

// errClosed ends the connections of an offer that is closed.
var errClosed = errors.New("the offer is closed")

// Offer is a root disk that a destination may fetch.
type Offer struct {
	Ticket Ticket

	server *Server
	source Source
	ctx    context.Context //nolint:containedctx // the life of the offer, which no single call has
	cancel context.CancelCauseFunc
	had    []*manifest // of each tree

	sent      atomic.Int64 // bytes of content
	connected atomic.Bool
	watch     sync.WaitGroup
	serving   sync.Mutex    // held by the one connection that is served
	final     chan struct{} // closed once the guest has stopped
	finished  chan struct{} // closed once the destination has everything
	once      sync.Once     // closes final
	done      sync.Once     // closes finished
}

// Finish lets the last pass go, for the guest has stopped, and waits until the destination
// has everything. ErrAborted: it will not.
func (o *Offer) Finish(ctx context.Context) error {
	o.once.Do(func() { close(o.final) })
	select {
	case <-o.finished:
		return nil
	case <-o.ctx.Done():
		return context.Cause(o.ctx) //nolint:contextcheck // the offer has a life of its own
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// complete tells that the destination has everything.
func (o *Offer) complete() bool {
	select {
	case <-o.finished:
		return true
	default:
		return false
	}
}

// Close ends the offer; its ticket is worth nothing any more. When it returns nothing reads
// the root disk. It may be repeated.
func (o *Offer) Close() {
	o.cancel(errClosed)
	o.server.withdraw(o)
	o.watch.Wait()
	o.serving.Lock()
	defer o.serving.Unlock()
}

// serve answers one connection.
func (o *Offer) serve(raw net.Conn) error {
	o.serving.Lock()
	defer o.serving.Unlock()
	if o.ctx.Err() != nil {
		return context.Cause(o.ctx)
	}
	o.connected.Store(true)
	defer o.connected.Store(false)
	ctx, cancel := context.WithCancelCause(o.ctx)
	defer cancel(nil)
	c := newCodec(&conn{Conn: raw, ctx: ctx, limit: &o.server.limit, silence: silence})
	// An end from outside leaves a moment for the last word.
	stop := context.AfterFunc(ctx, func() {
		_ = raw.SetReadDeadline(time.Now())
		time.AfterFunc(lastWord, func() { _ = raw.Close() })
	})
	defer stop()
	acks := newAcknowledgements()
	requests := make(chan kind) // one at a time: the destination waits for the end of a pass
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(requests)
		cancel(o.listen(ctx, c, acks, requests))
	})
	defer reader.Wait()
	defer cancel(nil)
	defer func() {
		if o.ctx.Err() != nil { // the destination need not try again
			_ = c.send(kindRefuse, failure{Reason: errRefused.Error()})
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case k, ok := <-requests:
			if !ok {
				return context.Cause(ctx)
			}
			if err := o.answer(ctx, c, acks, k); err != nil {
				return err
			}
		}
	}
}

// listen reads what the destination says until the connection ends.
func (o *Offer) listen(ctx context.Context, c *codec, acks *acknowledgements, requests chan<- kind) error {
	for {
		k, body, err := c.read(nil)
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
		switch k {
		case kindAck:
			if len(body) != 8 {
				return errFrame
			}
			acks.acknowledge(binary.BigEndian.Uint64(body))
		case kindPass, kindLast:
			select {
			case requests <- k:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case kindAlive:
		case kindFail:
			var f failure
			_ = json.Unmarshal(body, &f) // the reason is only for the operator
			err := fmt.Errorf("%w: %s", ErrAborted, f.Reason)
			o.cancel(err)
			return err
		default:
			return errFrame
		}
	}
}

// answer sends the pass that the destination asked for.
func (o *Offer) answer(ctx context.Context, c *codec, acks *acknowledgements, k kind) error {
	last := k == kindLast
	if last {
		if err := o.awaitStop(ctx, c); err != nil {
			return err
		}
	}
	began := time.Now()
	count, err := o.pass(ctx, c, acks, last)
	if err != nil {
		var broken *wireError
		if ctx.Err() == nil && !errors.As(err, &broken) { // what is wrong is wrong with the disk: another try would meet it again
			_ = c.send(kindRefuse, failure{Reason: err.Error()})
			o.cancel(err)
		}
		return err
	}
	if err := o.awaitAcks(ctx, c, acks); err != nil {
		return err
	}
	reqctx.Log(o.ctx).WithField("last", last).WithField("entries", count.Entries).WithField("bytes", count.Bytes). //nolint:contextcheck // the offer has a life of its own
															WithField("elapsed_ms", time.Since(began).Milliseconds()).Info("root disk sent")
	if last {
		o.done.Do(func() { close(o.finished) })
	}
	return nil
}

func (o *Offer) pass(ctx context.Context, c *codec, acks *acknowledgements, last bool) (passed, error) {
	s := &sender{c: c, acks: acks, ids: o.source.IDs, total: &o.sent}
	defer o.report(ctx, acks)()
	for i, tree := range o.source.Trees {
		if i > 0 {
			if err := c.write(kindTree, []byte{byte(i)}); err != nil {
				return s.count, err
			}
		}
		s.had, s.layer = o.had[i], tree.Layer
		if err := s.sendTree(ctx, tree, last); err != nil {
			return s.count, err
		}
	}
	return s.count, c.send(kindDone, s.count)
}

// progressEvery is how often a transfer that takes long says how far it is.
const progressEvery = 30 * time.Second

// report logs how far a pass is, until the returned function is called.
func (o *Offer) report(ctx context.Context, acks *acknowledgements) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() {
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				reqctx.Log(o.ctx).WithField("entries", acks.so()).WithField("bytes", o.sent.Load()).Info("sending root disk") //nolint:contextcheck // the offer has a life of its own
			}
		}
	})
	return func() { cancel(); work.Wait() }
}

// awaitStop waits until the guest has stopped, and lets the destination know that this host lives.
func (o *Offer) awaitStop(ctx context.Context, c *codec) error {
	return o.await(ctx, c, func() (bool, <-chan struct{}) {
		select {
		case <-o.final:
			return true, nil
		default:
			return false, o.final
		}
	})
}

// awaitAcks waits until the destination has applied the pass.
func (o *Offer) awaitAcks(ctx context.Context, c *codec, acks *acknowledgements) error {
	return o.await(ctx, c, acks.complete)
}

func (o *Offer) await(ctx context.Context, c *codec, check func() (bool, <-chan struct{})) error {
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	for {
		ok, moved := check()
		if ok {
			return nil
		}
		select {
		case <-moved:
		case <-alive.C:
			if err := c.send(kindAlive, struct{}{}); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// expire ends the offer when the destination has not been there for a while.
func (o *Offer) expire() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	away := time.Now()
	for {
		select {
		case <-o.ctx.Done():
			return
		case <-tick.C:
		}
		if o.connected.Load() {
			away = time.Now()
		}
		if time.Since(away) > patience {
			o.cancel(fmt.Errorf("%w: it has not been there for %s", ErrAborted, patience))
			o.server.withdraw(o)
			return
		}
	}
}
