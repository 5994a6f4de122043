package glance

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/compute-agent/compute-agent/internal/openstack"
)

// maxPages bounds a listing: a service that never ends it must not keep the caller for ever.
const maxPages = 1000

// List returns the images that have all of these properties, newest first.
func (c *Client) List(ctx context.Context, properties map[string]string) ([]Image, error) {
	query := url.Values{"sort_key": {"created_at"}, "sort_dir": {"desc"}}
	for name, value := range properties {
		query.Set(name, value)
	}
	var all []Image
	for range maxPages {
		var page struct {
			Images []Image `json:"images"`
			Next   string  `json:"next"` // path and query of the next page; "" at the end
		}
		err := c.attempt(ctx, func(endpoint string) error {
			return c.options.Service.Do(ctx, openstack.Request{
				Method: http.MethodGet, Path: "/images", Query: query, Into: &page, User: true, Endpoint: endpoint,
			})
		})
		if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		all = append(all, page.Images...)
		if page.Next == "" {
			return all, nil
		}
		_, next, _ := strings.Cut(page.Next, "?")
		if query, err = url.ParseQuery(next); err != nil {
			return nil, fmt.Errorf("list images: link to the next page: %w", err)
		}
	}
	return nil, fmt.Errorf("list images: more than %d pages", maxPages)
}
