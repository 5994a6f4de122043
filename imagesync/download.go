package imagesync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// download reads a Source to its end, going on at the same byte after a broken
// connection. Its error is kept: whoever reads behind a decompressor sees only
// that its input ended.
type download struct {
	ctx     context.Context //nolint:containedctx // io.Reader has no parameter for it; lives for one import
	src     Source
	size    int64 // expected bytes, <= 0: unknown
	limit   int64 // most bytes, 0: no limit
	retries int
	delay   time.Duration
	stall   time.Duration // longest silence of a connection

	body   io.ReadCloser // nil: to be opened at offset
	cancel func()        // ends the connection of body
	silent *time.Timer   // calls cancel
	offset int64
	failed int // attempts in a row without a byte
	err    error
}

// Read implements io.Reader.
func (d *download) Read(p []byte) (int, error) {
	for d.err == nil {
		n, err := d.attempt(p)
		if n > 0 {
			d.failed = 0
			d.offset += int64(n)
			d.err = d.tooLong()
			return n, d.err
		}
		if err == nil {
			continue
		}
		d.err = d.again(err)
	}
	return 0, d.err
}

// attempt reads once, opening the source if needed. io.EOF means complete.
func (d *download) attempt(p []byte) (int, error) {
	if d.body == nil {
		if err := d.open(); err != nil {
			return 0, err
		}
	}
	d.silent.Reset(d.stall)
	n, err := d.body.Read(p)
	d.silent.Stop()
	if n == 0 && errors.Is(err, io.EOF) {
		if d.size > 0 && d.offset < d.size {
			return 0, fmt.Errorf("connection ended after %d of %d bytes: %w", d.offset, d.size, io.ErrUnexpectedEOF)
		}
		return 0, io.EOF
	}
	return n, err
}

// open connects at the offset that has been reached. A connection that is silent for
// too long is ended, which shows as an error of the read that waits for it.
func (d *download) open() error {
	ctx, cancel := context.WithCancelCause(d.ctx)
	d.cancel = func() { cancel(nil) }
	d.silent = time.AfterFunc(d.stall, func() { cancel(errStalled) })
	body, err := d.src.Open(ctx, d.offset)
	d.silent.Stop()
	if err != nil {
		if cause := context.Cause(ctx); d.ctx.Err() == nil && cause != nil {
			err = cause
		}
		cancel(nil)
		return err
	}
	d.body = body
	return nil
}

var errStalled = errors.New("connection is silent")

// again decides what an error means: nil to try again after a pause.
func (d *download) again(err error) error {
	if err == io.EOF { //nolint:errorlint // exactly the end, not a wrapped one
		return io.EOF
	}
	_ = d.Close()
	if d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	var permanent interface{ Permanent() bool }
	if errors.As(err, &permanent) && permanent.Permanent() {
		return fmt.Errorf("download image: %w", err)
	}
	if d.failed++; d.failed >= d.retries {
		return fmt.Errorf("download image: no progress at byte %d in %d attempts: %w", d.offset, d.failed, err)
	}
	pause := time.NewTimer(d.delay)
	defer pause.Stop()
	select {
	case <-pause.C:
		return nil
	case <-d.ctx.Done():
		return context.Cause(d.ctx)
	}
}

func (d *download) tooLong() error {
	if d.size > 0 && d.offset > d.size {
		return fmt.Errorf("%w: more than the %d bytes that Glance has recorded", ErrHashMismatch, d.size)
	}
	if d.limit > 0 && d.offset > d.limit {
		return tooLarge(d.limit, fmt.Sprintf("more than %d bytes", d.limit))
	}
	return nil
}

// failure returns the error that ended the download, nil while it goes on or when it is complete.
func (d *download) failure() error {
	if d.err == io.EOF { //nolint:errorlint // exactly the end, not a wrapped one
		return nil
	}
	return d.err
}

// Close closes the connection.
func (d *download) Close() error {
	if d.body == nil {
		return nil
	}
	body := d.body
	d.body = nil
	d.silent.Stop()
	defer d.cancel()
	return body.Close()
}
