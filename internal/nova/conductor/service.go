package conductor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
)

// MinimumServiceVersion is the least version among the services of a binary in this
// cell, stopped and disabled ones too; 0 when there is none.
func (c *Client) MinimumServiceVersion(ctx context.Context, binary string) (int, error) {
	result, err := c.class(ctx, "Service", "get_minimum_version", []any{binary}, nil)
	if err != nil {
		return 0, err
	}
	return integer(result, "Service.get_minimum_version")
}

// DetectRelease finds the control plane's release by the service versions of its own
// conductors and schedulers in this cell, the lowest of them. A nova-compute's version
// would say what the computes are, not what the control plane is.
func (c *Client) DetectRelease(ctx context.Context) (release.Release, error) {
	result, err := c.class(ctx, "Service", "get_minimum_version_multi", []any{[]string{"nova-conductor", "nova-scheduler"}}, nil)
	if err != nil {
		return release.Release{}, fmt.Errorf("detect the control plane's release: %w", err)
	}
	version, err := integer(result, "Service.get_minimum_version_multi")
	if err != nil {
		return release.Release{}, fmt.Errorf("detect the control plane's release: %w", err)
	}
	if version == 0 {
		return release.Release{}, errors.New("detect the control plane's release: no conductor or scheduler has a service record; set [lxc] release")
	}
	r, ok := release.Detect(version)
	if !ok {
		return release.Release{}, fmt.Errorf("detect the control plane's release: service version %d is of no known release; set [lxc] release", version)
	}
	return r, nil
}

func integer(raw json.RawMessage, what string) (int, error) {
	var n int
	if err := json.Unmarshal(raw, &n); err != nil {
		return 0, fmt.Errorf("read result of %s: not an integer", what)
	}
	return n, nil
}

// ServiceByHost finds the service record of a binary on a host; nil when there is none.
func (c *Client) ServiceByHost(ctx context.Context, host, binary string) (*object.Service, error) {
	return get[object.Service](ctx, c, "Service", "get_by_host_and_binary", []any{host, binary}, nil)
}

// ServiceByComputeHost finds nova-compute's record of a host, to see whether it is
// disabled. The failure ComputeHostNotFound means that there is none.
func (c *Client) ServiceByComputeHost(ctx context.Context, host string) (*object.Service, error) {
	return get[object.Service](ctx, c, "Service", "get_by_compute_host", []any{host}, nil)
}

// CreateService makes the record of a service of Host, Binary and Topic with its
// ServiceVersion and ReportCount; id, uuid and the rest come back. Failures:
// ServiceTopicExists or ServiceBinaryExists when another made it first, ServiceTooOld.
func (c *Client) CreateService(ctx context.Context, s *object.Service) error {
	return c.create(ctx, s, "Service", []string{"host", "binary", "topic", "report_count", "version"})
}

// ReportService stores the service's ReportCount, which the caller has counted up: the
// sign of life. The database sets last_seen_up only when the count is greater than the
// stored one, so it goes on from the stored one after a restart, and it is not counted
// down when no answer comes.
func (c *Client) ReportService(ctx context.Context, s *object.Service) error {
	return c.save(ctx, s, "Service", []string{"id"}, map[string]any{"report_count": s.ReportCount}, nil)
}

// SetServiceVersion stores another service version in the record.
func (c *Client) SetServiceVersion(ctx context.Context, s *object.Service, version int) error {
	return c.save(ctx, s, "Service", []string{"id"}, map[string]any{"version": version}, nil)
}
