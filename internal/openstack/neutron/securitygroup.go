package neutron

import (
	"context"
	"fmt"
	"net/url"
	"slices"
)

// defaultGroup is what Neutron applies to a port by itself.
const defaultGroup = "default"

type securityGroup struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// securityGroupIDs turns the names or ids of a request into ids, among the
// groups of the project and then, where Neutron can list them, among those
// shared with it (nova/network/neutron.py:_process_security_groups). The lone
// group "default" needs no id.
func (c *Client) securityGroupIDs(ctx context.Context, projectID string, wanted []string) ([]string, error) {
	if len(wanted) == 0 || slices.Equal(wanted, []string{defaultGroup}) {
		return nil, nil
	}
	// Without the fields Neutron would collect the rules of every group.
	fields := []string{"id", "name"}
	groups, err := list[securityGroup](ctx, c, asUser, "security-groups", "", nil, url.Values{"fields": fields, "tenant_id": {projectID}})
	if err != nil {
		return nil, fmt.Errorf("list security groups: %w", err)
	}
	ids, missing, err := pickGroups(groups, wanted)
	if err != nil || missing == "" {
		return ids, err
	}
	known, err := c.knownExtensions(ctx)
	if err != nil {
		return nil, err
	}
	if known[extSharedFilter] {
		shared, err := list[securityGroup](ctx, c, asUser, "security-groups", "", nil, url.Values{"fields": fields, "shared": {"True"}})
		if err != nil {
			return nil, fmt.Errorf("list shared security groups: %w", err)
		}
		if ids, missing, err = pickGroups(append(groups, shared...), wanted); err != nil {
			return nil, err
		}
	}
	if missing != "" {
		return nil, &Error{Sentinel: ErrSecurityGroupNotFound, ID: missing}
	}
	return ids, nil
}

// pickGroups finds each wanted group by id, then by name. It returns the first that is missing.
func pickGroups(groups []securityGroup, wanted []string) (ids []string, missing string, err error) {
	known := make(map[string]bool, len(groups))
	byName := make(map[string][]string, len(groups))
	for _, g := range groups {
		if !known[g.ID] {
			known[g.ID] = true
			byName[g.Name] = append(byName[g.Name], g.ID)
		}
	}
	for _, w := range wanted {
		switch named := byName[w]; {
		case known[w]:
			ids = append(ids, w)
		case len(named) == 1:
			ids = append(ids, named[0])
		case len(named) > 1:
			return nil, "", &Error{Sentinel: ErrSecurityGroupAmbiguous, ID: w}
		default:
			return nil, w, nil
		}
	}
	return ids, "", nil
}
