package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/imagesync"
)

// Local is the store of this process.
type Local struct {
	Store *imagesync.Store
	// Fetch asks Glance about an image; nil: Glance is not configured.
	Fetch func(ctx context.Context, id string) (imagesync.Request, error)
}

// progressInterval is the time between two reports of a download.
const progressInterval = 200 * time.Millisecond

// List implements Images.
func (l *Local) List(ctx context.Context) (Listing, error) {
	images, err := l.Store.List(ctx)
	if err != nil {
		return Listing{}, err
	}
	usage, err := l.Store.Usage()
	if err != nil {
		return Listing{}, err
	}
	out := Listing{Images: []Image{}, Transfers: []Transfer{}, Contents: usage.Contents, DiskSize: usage.Bytes, Free: usage.Free}
	for _, i := range images {
		out.Images = append(out.Images, describe(i))
	}
	for _, t := range l.Store.Transfers() {
		out.Transfers = append(out.Transfers, Transfer{ID: t.ID, Received: t.Received, Size: t.Size, Started: t.Started.UTC()})
	}
	return out, nil
}

// Import implements Images.
func (l *Local) Import(ctx context.Context, o ImportOptions, progress func(Progress)) (Imported, error) {
	have, known, err := l.Store.Get(ctx, o.ID)
	if err != nil {
		return Imported{}, err
	}
	var r imagesync.Request
	switch {
	case o.Body != nil && known:
		return Imported{}, fmt.Errorf("import %s: %w", o.ID, imagesync.ErrExists)
	case o.Body != nil:
		r = imagesync.Request{ID: o.ID, Local: true, Size: o.Size, Source: &stream{r: o.Body}}
	case known && (have.Keep || !o.Keep):
		return Imported{Image: describe(have), Existing: true}, nil
	case l.Fetch == nil:
		return Imported{}, errors.New("import from Glance: no section of the configuration has credentials for it; set them in [glance] or [service_user]")
	default:
		if r, err = l.Fetch(ctx, o.ID); err != nil {
			return Imported{}, err
		}
	}
	r.Keep = o.Keep
	stop := l.watch(r.ID, progress)
	image, err := l.Store.Sync(ctx, r)
	stop()
	if err != nil {
		return Imported{}, err
	}
	return Imported{Image: describe(image), Existing: known}, nil
}

// watch reports the progress of an import until the returned function is called.
func (l *Local) watch(id string, progress func(Progress)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	quit := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			for _, t := range l.Store.Transfers() {
				if t.ID == id {
					progress(Progress{Received: t.Received, Size: t.Size})
				}
			}
		}
	})
	return func() { close(quit); watcher.Wait() }
}

// Remove implements Images.
func (l *Local) Remove(ctx context.Context, id string) error {
	if _, ok, err := l.Store.Get(ctx, id); err != nil || !ok {
		return errors.Join(err, fmt.Errorf("remove image %s: %w", id, imagesync.ErrNotFound))
	}
	return l.Store.Remove(ctx, id)
}

// Prune implements Images.
func (l *Local) Prune(ctx context.Context, o PruneOptions) ([]Pruned, error) {
	removed, err := l.Store.Prune(ctx, imagesync.Policy{Unused: o.Unused, MaxBytes: o.MaxBytes, DryRun: o.DryRun})
	out := []Pruned{}
	for _, p := range removed {
		out = append(out, Pruned{ID: p.ID, LastUsed: p.LastUsed.UTC(), Bytes: p.Bytes, Reason: p.Reason})
	}
	return out, err
}

// Hold implements Images.
func (l *Local) Hold(ctx context.Context, id string) (*Held, error) {
	release := l.Store.Hold(id)
	image, ok, err := l.Store.Get(ctx, id)
	if err == nil && !ok {
		err = fmt.Errorf("use image %s: %w", id, imagesync.ErrNotFound)
	}
	if err != nil {
		release()
		return nil, err
	}
	return &Held{Image: describe(image), Lost: make(chan struct{}), Release: release}, nil
}

// Close implements Images.
func (l *Local) Close() error { return l.Store.Close() }

// stream is a source that can be read once.
type stream struct {
	mu   sync.Mutex // guards r
	r    io.Reader
	fail error
}

// Open implements imagesync.Source.
func (s *stream) Open(context.Context, int64) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.r == nil {
		return nil, &brokenStream{s.fail}
	}
	r := s.r
	s.r = nil
	return io.NopCloser(&failing{r: r, s: s}), nil
}

// failing keeps the error of a stream that cannot be opened again.
type failing struct {
	r io.Reader
	s *stream
}

// Read implements io.Reader.
func (f *failing) Read(b []byte) (int, error) {
	n, err := f.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		f.s.mu.Lock()
		f.s.fail = err
		f.s.mu.Unlock()
	}
	return n, err
}

// brokenStream tells why a stream ended too early.
type brokenStream struct{ cause error }

// Error implements error.
func (e *brokenStream) Error() string {
	if e.cause == nil {
		return "the stream ended before the image did"
	}
	return "the stream broke off: " + e.cause.Error()
}

// Unwrap gives the cause.
func (e *brokenStream) Unwrap() error { return e.cause }

// Permanent tells the store not to try again.
func (e *brokenStream) Permanent() bool { return true }
