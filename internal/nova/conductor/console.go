package conductor

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// AuthorizeConsoleToken stores the way to a console for ttl and returns the token, which
// is the caller's secret: the database has only its hash.
func (c *Client) AuthorizeConsoleToken(ctx context.Context, tok *object.ConsoleAuthToken, ttl time.Duration) (string, error) {
	fields := []string{"console_type", "host", "port", "internal_access_path", "instance_uuid", "access_url_base"}
	if tok.TLSPort != nil {
		fields = append(fields, "tls_port")
	}
	h := tok.Head()
	if h.Class == "" {
		*h = object.New("ConsoleAuthToken", c.release.ObjectVersion("ConsoleAuthToken"))
	}
	if err := object.Mark(tok, fields...); err != nil {
		return "", err
	}
	updates, result, err := c.action(ctx, tok, "ConsoleAuthToken", "authorize", []any{int(ttl / time.Second)}, nil)
	if err != nil {
		return "", err
	}
	var token string
	if err := json.Unmarshal(result, &token); err != nil || token == "" {
		return "", errors.New("read result of ConsoleAuthToken.authorize: no token")
	}
	return token, stored(tok, "ConsoleAuthToken", nil, updates)
}

// CleanConsoleTokens removes all console tokens of an instance.
func (c *Client) CleanConsoleTokens(ctx context.Context, uuid string) error {
	_, err := c.class(ctx, "ConsoleAuthToken", "clean_console_auths_for_instance", []any{uuid}, nil)
	return err
}

// CleanExpiredConsoleTokens removes the console tokens whose time is over.
func (c *Client) CleanExpiredConsoleTokens(ctx context.Context) error {
	_, err := c.class(ctx, "ConsoleAuthToken", "clean_expired_console_auths", nil, nil)
	return err
}
