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

// Provider is a resource provider. Generation changes with every change of its
// inventories, traits, aggregates or allocations.
type Provider struct {
	UUID       string `json:"uuid"`
	Name       string `json:"name"`
	Generation int64  `json:"generation"`
	ParentUUID string `json:"parent_provider_uuid"` // empty: a root
	RootUUID   string `json:"root_provider_uuid"`
}

// Inventory is what a provider has of one resource class.
type Inventory struct {
	Total           int     `json:"total"` // at least 1
	Reserved        int     `json:"reserved"`
	MinUnit         int     `json:"min_unit"`
	MaxUnit         int     `json:"max_unit"`
	StepSize        int     `json:"step_size"`
	AllocationRatio float64 `json:"allocation_ratio"`
}

// Inventories maps resource classes to inventories.
type Inventories map[string]Inventory

// Provider returns a provider. It fails with ErrNotFound when there is none.
func (c *Client) Provider(ctx context.Context, uuid string) (Provider, error) {
	var p Provider
	if err := c.do(ctx, "1.14", http.MethodGet, providerPath(uuid, ""), nil, nil, &p); err != nil {
		return Provider{}, fmt.Errorf("show resource provider %s: %w", uuid, err)
	}
	return p, nil
}

// EnsureProvider returns the provider with the UUID, created under the name if
// there is none. A provider that another process creates at the same moment is
// found; a name that belongs to another UUID is ErrNameTaken
// (nova/scheduler/client/report.py:_create_resource_provider). An existing
// provider keeps its name.
func (c *Client) EnsureProvider(ctx context.Context, uuid, name string) (p Provider, created bool, err error) {
	p, err = c.Provider(ctx, uuid)
	if err == nil || !errors.Is(err, ErrNotFound) {
		return p, false, err
	}
	body := map[string]string{"uuid": uuid, "name": name}
	err = c.do(ctx, "1.20", http.MethodPost, "/resource_providers", nil, body, &p)
	if err == nil {
		return p, true, nil
	}
	err = fmt.Errorf("create resource provider %s: %w", uuid, err)
	if openstack.Status(err) != http.StatusConflict {
		return Provider{}, false, err
	}
	// The text is the only mark that tells a taken name from a taken UUID.
	if e, ok := errors.AsType[*openstack.HTTPError](err); ok && strings.Contains(e.Message, "Conflicting resource provider name:") {
		return Provider{}, false, fmt.Errorf("%w: %w", ErrNameTaken, err)
	}
	p, err = c.Provider(ctx, uuid)
	return p, false, err
}

// DeleteProvider removes a provider; one that does not exist is a success.
// Allocations or child providers make it ErrInUse.
func (c *Client) DeleteProvider(ctx context.Context, uuid string) error {
	err := c.do(ctx, errorCodes, http.MethodDelete, providerPath(uuid, ""), nil, nil, nil)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("delete resource provider %s: %w", uuid, err)
	}
	return nil
}

// Inventories returns a provider's inventories and its generation.
func (c *Client) Inventories(ctx context.Context, uuid string) (Inventories, int64, error) {
	var body inventoriesBody
	if err := c.do(ctx, "1.0", http.MethodGet, providerPath(uuid, "inventories"), nil, nil, &body); err != nil {
		return nil, 0, fmt.Errorf("list inventories of %s: %w", uuid, err)
	}
	return body.Inventories, body.Generation, nil
}

// SetInventories replaces all inventories of a provider and returns its new
// generation. ErrConflict: generation is out of date; ErrInUse: allocations
// exceed or need what would be removed.
func (c *Client) SetInventories(ctx context.Context, uuid string, generation int64, inv Inventories) (int64, error) {
	var answer inventoriesBody
	body := inventoriesBody{Generation: generation, Inventories: inv}
	if body.Inventories == nil {
		body.Inventories = Inventories{}
	}
	if err := c.do(ctx, "1.26", http.MethodPut, providerPath(uuid, "inventories"), nil, body, &answer); err != nil {
		return 0, fmt.Errorf("set inventories of %s: %w", uuid, err)
	}
	return answer.Generation, nil
}

type inventoriesBody struct {
	Generation  int64       `json:"resource_provider_generation"`
	Inventories Inventories `json:"inventories"`
}

func providerPath(uuid, below string) string {
	path := "/resource_providers/" + url.PathEscape(uuid)
	if below != "" {
		path += "/" + below
	}
	return path
}
