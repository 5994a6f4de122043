package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Refusal is what a compute host answered to a call that the lab's REST API does not lead to.
type Refusal struct {
	Method string // "": Text is the number of volumes that the server has
	Error  string // class of the exception, "" for a result
	Text   string
}

// SoftDelete deletes servers as the API does where reclaim_instance_interval is set: here it is not, since it would be for all servers.
func (p *Plane) SoftDelete(ctx context.Context, servers ...string) error {
	_, err := p.compute(ctx, append([]string{"soft-delete"}, servers...)...)
	return err
}

// Refusals asks a server's compute host for volumes, a move to another cell, and the steps of live migrations. Each has an action in the server's history.
func (p *Plane) Refusals(ctx context.Context, server string) ([]Refusal, error) {
	text, err := p.compute(ctx, "refused", server)
	if err != nil {
		return nil, err
	}
	var all []Refusal
	for line := range strings.Lines(text) {
		var r Refusal
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, fmt.Errorf("read answer %q: %w", line, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// TellUsage sends by nova's own code, in the name of a compute host, what its audit of the last period sends.
func (p *Plane) TellUsage(ctx context.Context, host, period string) error {
	_, err := p.compute(ctx, "tell-usage", host, period)
	return err
}

// CacheImages asks a compute host for images as the conductor does with an rpc_response_timeout, which is how long the host may
// give no sign of life. It returns what became of each.
func (p *Plane) CacheImages(ctx context.Context, host string, responseTimeout time.Duration, images ...string) (map[string]string, error) {
	text, err := p.compute(ctx, append([]string{"cache-images", host, strconv.Itoa(int(responseTimeout / time.Second))}, images...)...)
	if err != nil {
		return nil, err
	}
	var results map[string]string
	if err := json.Unmarshal([]byte(text), &results); err != nil {
		return nil, fmt.Errorf("read answer %q: %w", text, err)
	}
	return results, nil
}

// compute runs the helper that is nova's API without REST.
func (p *Plane) compute(ctx context.Context, args ...string) (string, error) {
	const helper = "etc/lab/compute.py"
	text, err := files.ReadFile("files/" + helper)
	if err != nil {
		return "", err
	}
	// A control plane that is up may have been brought up before there was this helper.
	if err := p.writeFile(helper, string(text), 0o644); err != nil {
		return "", err
	}
	return p.Run(ctx, "nova", append([]string{"/usr/bin/python3", "/" + helper}, args...)...)
}
