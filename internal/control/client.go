package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
)

// Client reaches the image store of a running agent.
type Client struct {
	path string
	http *http.Client
}

// Connect finds the agent that serves the socket; ErrNoAgent when there is none.
func Connect(ctx context.Context, path string) (*Client, error) {
	conn, err := Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	_ = conn.Close()
	transport := &http.Transport{
		DisableKeepAlives: true, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return Dial(ctx, path) },
	}
	return &Client{path: path, http: &http.Client{Transport: transport}}, nil
}

// Close implements Images.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// List implements Images.
func (c *Client) List(ctx context.Context) (Listing, error) {
	answer, err := c.ask(ctx, http.MethodGet, "/images", nil)
	if err != nil {
		return Listing{}, err
	}
	if answer.Listing == nil {
		return Listing{}, errNoAnswer
	}
	return *answer.Listing, nil
}

// Remove implements Images.
func (c *Client) Remove(ctx context.Context, id string) error {
	_, err := c.ask(ctx, http.MethodDelete, "/images/"+url.PathEscape(id), nil)
	return err
}

// Prune implements Images.
func (c *Client) Prune(ctx context.Context, o PruneOptions) ([]Pruned, error) {
	body, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	answer, err := c.ask(ctx, http.MethodPost, "/prune", bytes.NewReader(body))
	if err == nil {
		answer.Pruned = notNil(answer.Pruned)
	}
	return answer.Pruned, err
}

var errNoAnswer = errors.New("the agent's answer is empty; is it of another version?")

// ask makes a short request.
func (c *Client) ask(ctx context.Context, method, path string, body io.Reader) (line, error) {
	resp, err := c.send(ctx, method, path, body, -1)
	if err != nil {
		return line{}, err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	return next(ctx, json.NewDecoder(resp.Body))
}

func (c *Client) send(ctx context.Context, method, path string, body io.Reader, size int64) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return nil, err
	}
	if size >= 0 {
		r.ContentLength = size
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, c.broken(ctx, err)
	}
	return resp, nil
}

// broken explains a connection that did not hold.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, ErrNoAgent) {
		return err
	}
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	return fmt.Errorf("%w (%s): %w", ErrAgentEnded, c.path, err)
}

// next reads one line of an answer and turns its error into ours.
func next(ctx context.Context, d *json.Decoder) (line, error) {
	var l line
	if err := d.Decode(&l); err != nil {
		if ctx.Err() != nil {
			return line{}, context.Cause(ctx)
		}
		return line{}, fmt.Errorf("%w: %w", ErrAgentEnded, err)
	}
	if l.Error != nil {
		return l, fromWire(*l.Error)
	}
	return l, nil
}

// Import implements Images.
func (c *Client) Import(ctx context.Context, o ImportOptions, progress func(Progress)) (Imported, error) {
	query := url.Values{"keep": {strconv.FormatBool(o.Keep)}}
	var body io.Reader
	size := int64(-1)
	if o.Body != nil {
		query.Set("source", "body")
		stoppable := &stoppable{r: o.Body}
		defer stoppable.stop()
		body, size = stoppable, o.Size
	}
	resp, err := c.send(ctx, http.MethodPost, "/images/"+url.PathEscape(o.ID)+"?"+query.Encode(), body, size)
	if err != nil {
		return Imported{}, err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	for d := json.NewDecoder(resp.Body); ; {
		l, err := next(ctx, d)
		switch {
		case err != nil:
			return Imported{}, err
		case l.Imported != nil:
			return *l.Imported, nil
		case l.Progress != nil && progress != nil:
			progress(*l.Progress)
		}
	}
}

// stoppable is a body that ends when the answer has come.
type stoppable struct {
	mu      sync.Mutex // guards the fields below
	r       io.Reader
	stopped bool
}

// Read implements io.Reader.
func (s *stoppable) Read(b []byte) (int, error) {
	s.mu.Lock()
	stopped := s.stopped
	s.mu.Unlock()
	if stopped {
		return 0, io.EOF
	}
	return s.r.Read(b)
}

func (s *stoppable) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
}

// Hold implements Images.
func (c *Client) Hold(ctx context.Context, id string) (*Held, error) {
	ctx, cancel := context.WithCancel(ctx)
	resp, err := c.send(ctx, http.MethodPost, "/images/"+url.PathEscape(id)+"/hold", nil, -1)
	if err != nil {
		cancel()
		return nil, err
	}
	l, err := next(ctx, json.NewDecoder(resp.Body))
	if err == nil && l.Held == nil {
		err = errNoAnswer
	}
	if err != nil {
		cancel()
		return nil, errors.Join(err, resp.Body.Close())
	}
	lost := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		_, _ = io.Copy(io.Discard, resp.Body) // ends with the connection
		if ctx.Err() == nil {
			close(lost)
		}
	})
	release := sync.OnceFunc(func() {
		cancel()
		_ = resp.Body.Close()
		watcher.Wait()
	})
	return &Held{Image: *l.Held, Lost: lost, Release: release}, nil
}
