package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Deadlines of requests, and of a peer that stands still.
const (
	shortDeadline  = 30 * time.Second
	removeDeadline = 10 * time.Minute
	importDeadline = 6 * time.Hour // the store has its own, shorter one for each import
	holdDeadline   = 6 * time.Hour
	stallDeadline  = time.Minute
	stopDeadline   = 5 * time.Second
)

// maxRequest bounds the JSON of a request.
const maxRequest = 64 << 10

type peerKey struct{}

// Serve answers requests until ctx ends; what runs then is cancelled. It closes the listener.
func Serve(ctx context.Context, listener net.Listener, images Images, leftovers Collector) error {
	s := &server{images: images, leftovers: leftovers, owner: uint32(os.Geteuid())} //nolint:gosec // ids are 32 bits wide
	server := &http.Server{
		Handler: s.routes(), ReadHeaderTimeout: stopDeadline, IdleTimeout: shortDeadline, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			p, err := peerOf(conn)
			if err != nil {
				reqctx.Log(ctx).WithError(err).Warning("caller of the control socket not recognised")
				return ctx
			}
			return context.WithValue(ctx, peerKey{}, p)
		},
	}
	ended := make(chan struct{})
	var stopper sync.WaitGroup
	stopper.Go(func() {
		select {
		case <-ctx.Done():
		case <-ended:
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopDeadline)
		defer cancel()
		if server.Shutdown(stop) != nil {
			_ = server.Close()
		}
	})
	err := server.Serve(listener)
	close(ended)
	stopper.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve the control socket: %w", err)
}

type server struct {
	images    Images
	leftovers Collector
	owner     uint32 // user of the agent
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, deadline time.Duration, h func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, deadline, h) })
	}
	handle("GET /images", shortDeadline, s.list)
	handle("POST /images/{id}", importDeadline, s.importImage)
	handle("POST /images/{id}/hold", holdDeadline, s.hold)
	handle("DELETE /images/{id}", removeDeadline, s.remove)
	handle("POST /prune", removeDeadline, s.prune)
	handle("POST /leftovers", removeDeadline, s.collect)
	return mux
}

// serve checks who asks, gives the request its deadline and answers with its error.
func (s *server) serve(w http.ResponseWriter, r *http.Request, deadline time.Duration, h func(w http.ResponseWriter, r *http.Request) error) {
	p, ok := r.Context().Value(peerKey{}).(peer)
	if !ok || p.uid != 0 && p.uid != s.owner {
		reqctx.Log(r.Context()).WithField("uid", p.uid).WithField("pid", p.pid).Warning("control socket: caller refused")
		writeError(w, ErrForbidden)
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), deadline, fmt.Errorf("request took longer than %s: %w", deadline, context.DeadlineExceeded))
	defer cancel()
	started := time.Now()
	err := h(w, r.WithContext(ctx))
	log := reqctx.Log(ctx).WithField("http_method", r.Method).WithField("path", r.URL.Path).WithField("pid", p.pid).
		WithField("elapsed", time.Since(started).Round(time.Millisecond))
	if err != nil {
		log.WithError(err).Info("control request refused")
		writeError(w, err)
		return
	}
	log.Debug("control request")
}

func writeError(w http.ResponseWriter, err error) {
	f, status := toWire(err)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(line{Error: &f}) // the caller may have left
}

// line is an answer, or one of several.
type line struct {
	Error    *failure  `json:"error,omitempty"`
	Progress *Progress `json:"progress,omitempty"`
	Listing  *Listing  `json:"listing,omitempty"`
	Imported *Imported `json:"imported,omitempty"`
	Pruned   []Pruned  `json:"pruned,omitempty"`
	Held     *Image    `json:"held,omitempty"`

	Leftovers []Leftover `json:"leftovers,omitempty"`
}

func (s *server) list(w http.ResponseWriter, r *http.Request) error {
	listing, err := s.images.List(r.Context())
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(line{Listing: &listing})
}

func (s *server) remove(w http.ResponseWriter, r *http.Request) error {
	if err := s.images.Remove(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(line{})
}

// prune answers with what was removed, and with the error beside it if there is one.
func (s *server) prune(w http.ResponseWriter, r *http.Request) error {
	var o PruneOptions
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&o); err != nil {
		return fmt.Errorf("%w: %w", ErrRequest, err)
	}
	removed, err := s.images.Prune(r.Context(), o)
	answer := line{Pruned: removed}
	if err != nil {
		f, _ := toWire(err)
		answer.Error = &f
	}
	return json.NewEncoder(w).Encode(answer)
}

// importImage reads the image from the request's body, or from Glance if it has none.
func (s *server) importImage(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	keep, err := strconv.ParseBool(query.Get("keep"))
	if err != nil {
		return fmt.Errorf("%w: keep: %w", ErrRequest, err)
	}
	o := ImportOptions{ID: r.PathValue("id"), Keep: keep}
	rc := http.NewResponseController(w)
	if query.Get("source") == "body" {
		// The answer's lines go out while the body comes in.
		if err := rc.EnableFullDuplex(); err != nil {
			return err
		}
		o.Size, o.Body = r.ContentLength, &deadlineReader{r: r.Body, rc: rc}
	}
	out := &lines{w: w, rc: rc}
	out.write(line{Progress: &Progress{Size: o.Size}}) // headers, so that the caller listens while it sends
	imported, err := s.images.Import(r.Context(), o, func(p Progress) { out.write(line{Progress: &p}) })
	if err != nil {
		f, _ := toWire(err)
		out.write(line{Error: &f})
	} else {
		out.write(line{Imported: &imported})
	}
	if o.Body != nil { // the caller stops sending when it has read the answer
		_, _ = io.Copy(io.Discard, o.Body)
	}
	return nil
}

// hold keeps an image until the caller closes the connection.
func (s *server) hold(w http.ResponseWriter, r *http.Request) error {
	held, err := s.images.Hold(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	defer held.Release()
	out := &lines{w: w, rc: http.NewResponseController(w)}
	out.write(line{Held: &held.Image})
	<-r.Context().Done()
	return nil
}

// lines writes an answer in parts.
type lines struct {
	w  http.ResponseWriter
	rc *http.ResponseController

	mu sync.Mutex // one line at a time
}

func (l *lines) write(v line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.rc.SetWriteDeadline(time.Now().Add(stallDeadline))
	_ = json.NewEncoder(l.w).Encode(v) // a caller that has left shows in the request's context
	_ = l.rc.Flush()
}

// deadlineReader ends a body whose sender stands still.
type deadlineReader struct {
	r  io.Reader
	rc *http.ResponseController
}

// Read implements io.Reader.
func (d *deadlineReader) Read(b []byte) (int, error) {
	if err := d.rc.SetReadDeadline(time.Now().Add(stallDeadline)); err != nil {
		return 0, err
	}
	return d.r.Read(b)
}
