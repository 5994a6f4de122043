package placement

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Traits returns the traits of a provider and its generation.
func (c *Client) Traits(ctx context.Context, uuid string) ([]string, int64, error) {
	var body traitsBody
	if err := c.do(ctx, "1.6", http.MethodGet, providerPath(uuid, "traits"), nil, nil, &body); err != nil {
		return nil, 0, fmt.Errorf("list traits of %s: %w", uuid, err)
	}
	return body.Traits, body.Generation, nil
}

// SetTraits replaces the traits of a provider and returns its new generation.
// Every trait has to exist (see EnsureTraits).
func (c *Client) SetTraits(ctx context.Context, uuid string, generation int64, traits []string) (int64, error) {
	var answer traitsBody
	body := traitsBody{Generation: generation, Traits: append([]string{}, traits...)}
	slices.Sort(body.Traits)
	if err := c.do(ctx, "1.6", http.MethodPut, providerPath(uuid, "traits"), nil, body, &answer); err != nil {
		return 0, fmt.Errorf("set traits of %s: %w", uuid, err)
	}
	return answer.Generation, nil
}

type traitsBody struct {
	Generation int64    `json:"resource_provider_generation"`
	Traits     []string `json:"traits"`
}

// EnsureTraits returns those of the traits that Placement knows, after having
// created the custom ones that it does not. Standard traits of a later release
// than the service's are left out, since nobody but Placement can create them
// (nova/scheduler/client/report.py:_ensure_traits, which fails instead).
func (c *Client) EnsureTraits(ctx context.Context, traits []string) ([]string, error) {
	if len(traits) == 0 {
		return nil, nil
	}
	var known struct {
		Traits []string `json:"traits"`
	}
	query := url.Values{"name": {"in:" + strings.Join(traits, ",")}}
	if err := c.do(ctx, "1.6", http.MethodGet, "/traits", query, nil, &known); err != nil {
		return nil, fmt.Errorf("list traits: %w", err)
	}
	usable := make([]string, 0, len(traits))
	for _, trait := range traits {
		switch {
		case slices.Contains(known.Traits, trait):
		case strings.HasPrefix(trait, "CUSTOM_"):
			if err := c.do(ctx, "1.6", http.MethodPut, "/traits/"+url.PathEscape(trait), nil, nil, nil); err != nil {
				return nil, fmt.Errorf("create trait %s: %w", trait, err)
			}
		default:
			continue
		}
		usable = append(usable, trait)
	}
	return usable, nil
}
