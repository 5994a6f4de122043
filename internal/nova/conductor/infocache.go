package conductor

import (
	"context"
	"encoding/json"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

func failureIs(err error, class string) bool { return class != "" && exception.Is(err, class) }

// SaveInfoCache stores the VIF list of an instance, the source of the addresses that the
// API shows. The row is made if it is missing; of two writers the last wins. The
// failure InstanceInfoCacheNotFound means that the instance is gone.
func (c *Client) SaveInfoCache(ctx context.Context, instanceUUID string, ni object.NetworkInfo) error {
	if ni == nil {
		ni = object.NetworkInfo{}
	}
	cache := &object.InstanceInfoCache{Header: object.New("InstanceInfoCache", c.release.ObjectVersion("InstanceInfoCache"))}
	return c.save(ctx, cache, "InstanceInfoCache", nil, map[string]any{"instance_uuid": instanceUUID, "network_info": ni}, nil)
}

// RefreshInfoCache reads the VIF list of an instance again into inst.
func (c *Client) RefreshInfoCache(ctx context.Context, inst *object.Instance) error {
	cache, err := c.class(ctx, "InstanceInfoCache", "get_by_instance_uuid", []any{inst.UUID}, nil)
	if err != nil {
		return err
	}
	return stored(inst, "Instance", nil, map[string]json.RawMessage{"info_cache": cache})
}
