package neutron

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Options configure a Client; the fields are options of [neutron].
type Options struct {
	// Service has type network and version v2.0, with the credentials of [neutron].
	Service *openstack.Service
	// OVSBridge is the bridge of ports whose binding names none; empty: br-int.
	OVSBridge string
	// ExtensionSyncInterval is how long the list of extensions is kept; 0: 600 s.
	ExtensionSyncInterval time.Duration
}

const (
	defaultOVSBridge             = "br-int"
	defaultExtensionSyncInterval = 600 * time.Second
	// parallelPorts bounds how many ports of one server are worked on at once:
	// enough for any usual server, little enough not to flood Neutron's workers.
	parallelPorts = 8
	// undoTimeout bounds the removal of what a failed allocation left.
	undoTimeout = 30 * time.Second
	// idsPerQuery keeps URLs below 8 KB, which servers and proxies accept.
	idsPerQuery = 100
)

// Client speaks to Neutron. Safe for concurrent use.
type Client struct {
	options Options

	extensionFlight singleflight.Group
	mu              sync.Mutex // guards the fields below
	extensions      extensionSet
	extensionsRead  time.Time
	providers       map[string]providerNet // by network id; see providerNets
}

// New returns a client. It does not touch the network.
func New(o Options) *Client {
	if o.OVSBridge == "" {
		o.OVSBridge = defaultOVSBridge
	}
	if o.ExtensionSyncInterval == 0 {
		o.ExtensionSyncInterval = defaultExtensionSyncInterval
	}
	return &Client{options: o, providers: make(map[string]providerNet)}
}

// identity says with whose token a call is made.
type identity bool

const (
	asAdmin identity = false // [neutron]'s own credentials
	asUser  identity = true  // the request's token, if it has one
)

func (c *Client) do(ctx context.Context, as identity, method, path string, query url.Values, body, into any) error {
	return c.request(ctx, as, openstack.Request{Method: method, Path: path, Query: query, Body: body, Into: into})
}

func (c *Client) request(ctx context.Context, as identity, r openstack.Request) error {
	r.User = bool(as)
	err := c.options.Service.Do(ctx, r)
	return refused(err, r.User && reqctx.From(ctx).AuthToken != "")
}

// list reads a collection, filtered by ids when key is not empty, in as many
// requests as the length of a URL demands.
func list[T any](ctx context.Context, c *Client, as identity, collection, key string, ids []string, query url.Values) ([]T, error) {
	if key == "" {
		return listOnce[T](ctx, c, as, collection, query)
	}
	var all []T
	for len(ids) > 0 {
		n := min(len(ids), idsPerQuery)
		part := url.Values{key: ids[:n]}
		maps.Copy(part, query)
		items, err := listOnce[T](ctx, c, as, collection, part)
		if err != nil {
			return nil, err
		}
		all, ids = append(all, items...), ids[n:]
	}
	return all, nil
}

// listOnce reads a collection and follows the pages into which Neutron cuts it
// (pagination_max_limit).
func listOnce[T any](ctx context.Context, c *Client, as identity, collection string, query url.Values) ([]T, error) {
	key := strings.ReplaceAll(collection, "-", "_")
	var all []T
	for {
		var body map[string]json.RawMessage
		if err := c.do(ctx, as, http.MethodGet, "/"+collection, query, nil, &body); err != nil {
			return nil, err
		}
		var items []T
		if err := json.Unmarshal(body[key], &items); err != nil {
			return nil, fmt.Errorf("read list of %s: %w", collection, err)
		}
		all = append(all, items...)
		next, err := nextPage(body[key+"_links"])
		if err != nil {
			return nil, fmt.Errorf("read list of %s: %w", collection, err)
		}
		if next == nil || len(items) == 0 {
			return all, nil
		}
		query = next
	}
}

// nextPage returns the query of the next page, nil on the last one.
func nextPage(links json.RawMessage) (url.Values, error) {
	if len(links) == 0 {
		return nil, nil
	}
	var all []struct{ Rel, Href string }
	if err := json.Unmarshal(links, &all); err != nil {
		return nil, fmt.Errorf("read links: %w", err)
	}
	for _, l := range all {
		if l.Rel != "next" {
			continue
		}
		u, err := url.Parse(l.Href)
		if err != nil {
			return nil, fmt.Errorf("read links: %w", err)
		}
		return u.Query(), nil
	}
	return nil, nil
}
