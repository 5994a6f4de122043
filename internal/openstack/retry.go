package openstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"time"
)

const (
	// The delays of keystoneauth1/session.py (_ExponentialBackoff): 0.5 s, doubled, at most a minute.
	firstRetryDelay = 500 * time.Millisecond
	maxRetryDelay   = time.Minute
)

// retryConnect repeats attempt, at most retries times, while the connection
// fails: any failure of it when the request may safely be made twice, otherwise
// only one that came before the service can have seen the request.
func retryConnect(ctx context.Context, retries int, delay time.Duration, repeatable bool, attempt func() error) error {
	delay = orDefault(delay, firstRetryDelay)
	for {
		err := attempt()
		if err == nil || retries <= 0 || ctx.Err() != nil {
			return err
		}
		if !neverSent(err) && (!repeatable || !broken(err)) {
			return err
		}
		retries--
		if sleep(ctx, delay) != nil {
			return err
		}
		delay = min(2*delay, maxRetryDelay)
	}
}

// neverSent reports whether the connection itself could not be made.
func neverSent(err error) bool {
	e, ok := errors.AsType[*net.OpError](err)
	return ok && e.Op == "dial"
}

// broken reports whether there was no answer to the request.
func broken(err error) bool {
	if errors.Is(err, ErrUnreachable) {
		return true
	}
	_, ok := errors.AsType[*url.Error](err)
	return ok
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// unwrapURL drops net/http's "Get \"http://…\":", since the address is already named.
func unwrapURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}

// errSilent ends a request to which the service said nothing for its timeout.
var errSilent = errors.New("no answer within the timeout")

// idleWatch is a response body that cancels its request when a read gets
// nothing for the limit. A slow reader is no concern of it.
type idleWatch struct {
	ctx    context.Context //nolint:containedctx // the request's own, made and ended here
	cancel context.CancelCauseFunc
	limit  time.Duration
	timer  *time.Timer
	body   io.ReadCloser
}

func newIdleWatch(ctx context.Context, limit time.Duration) *idleWatch {
	w := &idleWatch{limit: limit}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(limit, func() { w.cancel(errSilent) })
	return w
}

// Read implements io.Reader.
func (w *idleWatch) Read(p []byte) (int, error) {
	w.timer.Reset(w.limit)
	n, err := w.body.Read(p)
	w.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(w.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

// Close implements io.Closer.
func (w *idleWatch) Close() error {
	err := w.body.Close()
	w.stop()
	return err
}

func (w *idleWatch) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// watchedReader is a request body whose progress keeps its request alive.
type watchedReader struct {
	io.Reader

	watch *idleWatch
}

// Read implements io.Reader.
func (r *watchedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.watch.timer.Reset(r.watch.limit)
	return n, err
}
