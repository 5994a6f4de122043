package glance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Errors that callers may test; each comes wrapped around the
// *openstack.HTTPError of the service. The comments name Nova's exception classes.
var (
	ErrNotFound      = errors.New("image not found")              // ImageNotFound
	ErrNotAuthorized = errors.New("not authorized for image")     // ImageNotAuthorized
	ErrBadRequest    = errors.New("image request is not valid")   // ImageBadRequest
	ErrQuotaExceeded = errors.New("image quota is exceeded")      // ImageQuotaExceeded
	ErrConflict      = errors.New("image is not in a fit state")  // ImageDeleteConflict, and others by operation
	ErrNoData        = errors.New("image has no data")            // ImageUnacceptable
	ErrUnreachable   = errors.New("image service is not reached") // GlanceConnectionFailed
)

// retryDelay is Nova's wait between attempts (nova/image/glance.py:GlanceClientWrapper.call).
const retryDelay = time.Second

// Options configure a Client; the fields are options of [glance].
type Options struct {
	// Service has type image and version v2; usually no credentials of its own.
	Service *openstack.Service
	// APIServers is api_servers; empty: the endpoint of the catalog. The list is
	// shuffled and used in turn, the next one for each attempt.
	APIServers []string
	// NumRetries is how many attempts follow a failed first one.
	NumRetries int
}

// Client speaks to Glance with the token of the context's request. Safe for
// concurrent use.
type Client struct {
	options Options
	next    atomic.Uint64 // turn in options.APIServers
}

// New returns a client. It does not touch the network.
func New(o Options) *Client {
	o.APIServers = slices.Clone(o.APIServers)
	rand.Shuffle(len(o.APIServers), func(i, j int) { //nolint:gosec // it spreads load and protects nothing
		o.APIServers[i], o.APIServers[j] = o.APIServers[j], o.APIServers[i]
	})
	return &Client{options: o}
}

// attempt calls fn with the server of its turn until it succeeds, fails for a
// reason that another attempt would not cure, or the retries are used up.
func (c *Client) attempt(ctx context.Context, fn func(endpoint string) error) error {
	for left := c.options.NumRetries; ; left-- {
		var endpoint string
		if n := uint64(len(c.options.APIServers)); n > 0 {
			endpoint = c.options.APIServers[(c.next.Add(1)-1)%n]
		}
		err := fn(endpoint)
		_, consumed := errors.AsType[*consumedError](err)
		if err == nil || left <= 0 || ctx.Err() != nil || consumed || !transient(err) {
			return classify(err)
		}
		reqctx.Log(ctx).WithError(err).WithField("retries_left", left).Warning("image service did not answer")
		timer := time.NewTimer(retryDelay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return classify(err)
		case <-timer.C:
		}
	}
}

func transient(err error) bool {
	return openstack.Status(err) == http.StatusServiceUnavailable || errors.Is(err, openstack.ErrUnreachable)
}

func classify(err error) error {
	if err == nil {
		return nil
	}
	var sentinel error
	switch openstack.Status(err) {
	case http.StatusBadRequest:
		sentinel = ErrBadRequest
	case http.StatusUnauthorized, http.StatusForbidden:
		sentinel = ErrNotAuthorized
	case http.StatusNotFound, http.StatusGone: // gone: deleted during an upload (glance/api/v2/image_data.py:upload)
		sentinel = ErrNotFound
	case http.StatusConflict:
		sentinel = ErrConflict
	case http.StatusRequestEntityTooLarge:
		sentinel = ErrQuotaExceeded
	default:
		if !transient(err) {
			return err
		}
		sentinel = ErrUnreachable
	}
	return fmt.Errorf("%w: %w", sentinel, err)
}

func imagePath(id, below string) string {
	path := "/images/" + url.PathEscape(id)
	if below != "" {
		path += "/" + below
	}
	return path
}
