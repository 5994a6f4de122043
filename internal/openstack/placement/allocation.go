package placement

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// Resources maps resource classes to amounts.
type Resources map[string]int

// Allocations are what one consumer (an instance or a migration) holds.
type Allocations struct {
	// ByProvider maps provider UUIDs to what is held of them. Empty: the consumer does not exist.
	ByProvider map[string]ProviderAllocation `json:"allocations"`
	// ConsumerGeneration is nil for a consumer that does not exist.
	ConsumerGeneration *int64 `json:"consumer_generation"`
	ProjectID          string `json:"project_id"`
	UserID             string `json:"user_id"`
}

// ProviderAllocation is the part of an allocation that one provider gives.
type ProviderAllocation struct {
	Resources  Resources `json:"resources"`
	Generation int64     `json:"generation,omitempty"` // of the provider; not sent
}

// ProviderAllocations returns what each consumer holds of a provider, by
// consumer UUID, and the provider's generation.
func (c *Client) ProviderAllocations(ctx context.Context, uuid string) (map[string]Resources, int64, error) {
	var body struct {
		Allocations map[string]struct {
			Resources Resources `json:"resources"`
		} `json:"allocations"`
		Generation int64 `json:"resource_provider_generation"`
	}
	if err := c.do(ctx, "1.0", http.MethodGet, providerPath(uuid, "allocations"), nil, nil, &body); err != nil {
		return nil, 0, fmt.Errorf("list allocations of provider %s: %w", uuid, err)
	}
	byConsumer := make(map[string]Resources, len(body.Allocations))
	for consumer, a := range body.Allocations {
		byConsumer[consumer] = a.Resources
	}
	return byConsumer, body.Generation, nil
}

// Allocations returns what a consumer holds; a consumer that does not exist holds nothing.
func (c *Client) Allocations(ctx context.Context, consumer string) (Allocations, error) {
	var a Allocations
	if err := c.do(ctx, "1.28", http.MethodGet, consumerPath(consumer), nil, nil, &a); err != nil {
		return Allocations{}, fmt.Errorf("list allocations of %s: %w", consumer, err)
	}
	return a, nil
}

// DeleteAllocation drops all that a consumer holds, whatever its generation.
// existed is false when it held nothing, which is no error.
func (c *Client) DeleteAllocation(ctx context.Context, consumer string) (existed bool, err error) {
	err = c.do(ctx, "1.0", http.MethodDelete, consumerPath(consumer), nil, nil, nil)
	switch {
	case errors.Is(err, ErrNotFound):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("delete allocations of %s: %w", consumer, err)
	}
	return true, nil
}

// EmptyAllocation drops all that a consumer holds unless another process
// changes it at the same moment, which is ErrConflict
// (nova/scheduler/client/report.py:delete_allocation_for_instance without force).
func (c *Client) EmptyAllocation(ctx context.Context, consumer string) error {
	a, err := c.Allocations(ctx, consumer)
	if err != nil || len(a.ByProvider) == 0 {
		return err
	}
	a.ByProvider = map[string]ProviderAllocation{}
	if err := c.do(ctx, "1.28", http.MethodPut, consumerPath(consumer), nil, a, nil); err != nil {
		return fmt.Errorf("empty allocations of %s: %w", consumer, err)
	}
	return nil
}

// SetAllocation replaces what a consumer holds. A.ConsumerGeneration is as last
// read, nil for a new consumer; ErrConflict when it is out of date or the
// resources are not there.
func (c *Client) SetAllocation(ctx context.Context, consumer string, a Allocations) error {
	if err := c.do(ctx, "1.28", http.MethodPut, consumerPath(consumer), nil, a.sendable(), nil); err != nil {
		return fmt.Errorf("set allocations of %s: %w", consumer, err)
	}
	return nil
}

// MoveAllocation gives what one consumer holds to another in one step, for
// which the target must hold nothing or exactly what it is to be freed of
// (nova/scheduler/client/report.py:move_allocations). A source that holds
// nothing while the target holds something is a move that is already done.
func (c *Client) MoveAllocation(ctx context.Context, source, target string) error {
	from, err := c.Allocations(ctx, source)
	if err != nil {
		return err
	}
	to, err := c.Allocations(ctx, target)
	if err != nil {
		return err
	}
	if len(from.ByProvider) == 0 {
		if len(to.ByProvider) > 0 {
			return nil
		}
		return fmt.Errorf("move allocations of %s to %s: %w: the source holds nothing", source, target, ErrNotFound)
	}
	moved := from.sendable()
	moved.ConsumerGeneration = to.ConsumerGeneration
	emptied := from
	emptied.ByProvider = map[string]ProviderAllocation{}
	body := map[string]Allocations{source: emptied, target: moved}
	if err := c.do(ctx, "1.28", http.MethodPost, "/allocations", nil, body, nil); err != nil {
		return fmt.Errorf("move allocations of %s to %s: %w", source, target, err)
	}
	return nil
}

// sendable is a copy without the providers' generations, which Placement refuses to be sent.
func (a Allocations) sendable() Allocations {
	byProvider := make(map[string]ProviderAllocation, len(a.ByProvider))
	for uuid, p := range a.ByProvider {
		byProvider[uuid] = ProviderAllocation{Resources: p.Resources}
	}
	a.ByProvider = byProvider
	return a
}

func consumerPath(consumer string) string { return "/allocations/" + url.PathEscape(consumer) }
