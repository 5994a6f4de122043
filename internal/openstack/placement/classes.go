package placement

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
)

// EnsureClass creates a custom resource class unless it exists
// (nova/scheduler/client/report.py:_ensure_resource_classes).
func (c *Client) EnsureClass(ctx context.Context, name string) error {
	if err := c.do(ctx, "1.7", http.MethodPut, "/resource_classes/"+url.PathEscape(name), nil, nil, nil); err != nil {
		return fmt.Errorf("create resource class %s: %w", name, err)
	}
	return nil
}
