package placement

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/compute-agent/compute-agent/internal/openstack"
)

// Errors that callers may test; each comes wrapped around the
// *openstack.HTTPError of the service.
var (
	// ErrNotFound: no such provider, trait or consumer.
	ErrNotFound = errors.New("not found in placement")
	// ErrConflict: a generation is out of date; read again and redo.
	ErrConflict = errors.New("changed in placement meanwhile")
	// ErrInUse: allocations forbid the change (an inventory below what is used, a provider with allocations).
	ErrInUse = errors.New("in use in placement")
	// ErrNameTaken: another provider has the name; an operator has to remove it.
	ErrNameTaken = errors.New("resource provider name is taken by another provider")
)

// Client speaks to Placement with the service's own credentials. Safe for
// concurrent use.
type Client struct {
	service *openstack.Service
}

// New returns a client. The service's type is placement, without a version.
func New(service *openstack.Service) *Client { return &Client{service: service} }

// Codes of Placement's errors (placement/errors.py).
const (
	codeInventoryInUse = "placement.inventory.inuse"
	codeProviderInUse  = "placement.resource_provider.inuse"
	codeCannotDelete   = "placement.resource_provider.cannot_delete_parent"
)

// lateConflict is what Placement says, with a status of 500, where it notices only in its own transaction that traits were set at the same moment
// (placement/handlers/trait.py:update_traits_for_resource_provider; placement/exception.py:ResourceProviderConcurrentUpdateDetected).
const lateConflict = "Another thread concurrently updated the resource provider data"

// errorCodes is the first microversion whose errors carry a code. Requests that
// must tell conflicts apart ask for at least this.
const errorCodes = "1.23"

// do makes one request at a microversion.
func (c *Client) do(ctx context.Context, microversion, method, path string, query url.Values, body, into any) error {
	err := c.service.Do(ctx, openstack.Request{
		Method: method, Path: path, Query: query, Body: body, Into: into,
		Header: map[string]string{"OpenStack-API-Version": "placement " + microversion},
	})
	if err == nil {
		return nil
	}
	switch openstack.Status(err) {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case http.StatusConflict:
		switch openstack.Kind(err) {
		case codeInventoryInUse, codeProviderInUse, codeCannotDelete:
			return fmt.Errorf("%w: %w", ErrInUse, err)
		default:
			return fmt.Errorf("%w: %w", ErrConflict, err)
		}
	case http.StatusInternalServerError:
		if e, ok := errors.AsType[*openstack.HTTPError](err); ok && strings.Contains(e.Message, lateConflict) {
			return fmt.Errorf("%w: %w", ErrConflict, err)
		}
	}
	return err
}
