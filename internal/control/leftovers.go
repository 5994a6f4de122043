package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// Leftover is what a host has of an instance that nova does not have there.
type Leftover struct {
	Instance  string   `json:"instance" yaml:"instance"`
	Has       []string `json:"has" yaml:"has"`
	Why       string   `json:"why" yaml:"why"`
	Removable bool     `json:"removable" yaml:"removable"`
	Removed   bool     `json:"removed" yaml:"removed"`
	Error     string   `json:"error,omitempty" yaml:"error,omitempty"`
}

// Collector looks for leftovers and removes those that are nobody's, unless dry. ErrStarting: the agent cannot yet.
type Collector func(ctx context.Context, dry bool) ([]Leftover, error)

// collectOptions are the body of a request.
type collectOptions struct {
	DryRun bool `json:"dry_run"`
}

func (s *server) collect(w http.ResponseWriter, r *http.Request) error {
	var o collectOptions
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&o); err != nil {
		return fmt.Errorf("%w: %w", ErrRequest, err)
	}
	found, err := s.leftovers(r.Context(), o.DryRun)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(line{Leftovers: found})
}

// Leftovers asks the agent for what is on its host without an instance, and to remove what is nobody's unless dry.
func (c *Client) Leftovers(ctx context.Context, dry bool) ([]Leftover, error) {
	body, err := json.Marshal(collectOptions{DryRun: dry})
	if err != nil {
		return nil, err
	}
	answer, err := c.ask(ctx, http.MethodPost, "/leftovers", bytes.NewReader(body))
	return notNil(answer.Leftovers), err
}
