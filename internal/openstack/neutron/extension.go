package neutron

import (
	"context"
	"fmt"
	"net/url"
	"time"
)

// Aliases of the extensions that change what is asked or sent.
const (
	extDNS             = "dns-integration"
	extMultiProvider   = "multi-provider"
	extBindingExtended = "binding-extended"
	extRequestGroups   = "port-resource-request-groups"
	extSharedFilter    = "security-groups-shared-filtering"
	extRouter          = "router"
)

// Warm authenticates and reads Neutron's extensions, so that the first boot does
// not wait for either. A failure means nothing for later calls.
func (c *Client) Warm(ctx context.Context) error {
	_, err := c.knownExtensions(ctx)
	return err
}

// extensionSet is the set of aliases of the extensions that Neutron has. It is never modified.
type extensionSet map[string]bool

// knownExtensions returns Neutron's extensions, read anew once per
// ExtensionSyncInterval (nova/network/neutron.py:_refresh_neutron_extensions_cache).
// Parallel callers share one request.
func (c *Client) knownExtensions(ctx context.Context) (extensionSet, error) {
	if known := c.cachedExtensions(); known != nil {
		return known, nil
	}
	results := c.extensionFlight.DoChan("", func() (any, error) {
		if known := c.cachedExtensions(); known != nil {
			return known, nil
		}
		type extension struct{ Alias string }
		// The list is the same for everybody; a caller that gives up does not end it for the others.
		all, err := list[extension](context.WithoutCancel(ctx), c, asAdmin, "extensions", "", nil, url.Values{"fields": {"alias"}})
		if err != nil {
			return nil, fmt.Errorf("list extensions: %w", err)
		}
		known := make(extensionSet, len(all))
		for _, e := range all {
			known[e.Alias] = true
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.extensions, c.extensionsRead = known, time.Now()
		return known, nil
	})
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case r := <-results:
		if r.Err != nil {
			return nil, r.Err
		}
		known, _ := r.Val.(extensionSet)
		return known, nil
	}
}

func (c *Client) cachedExtensions() extensionSet {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.extensionsRead) >= c.options.ExtensionSyncInterval {
		return nil
	}
	return c.extensions
}
