package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/config"
)

// TestPatience: the agent's end takes no longer than the options say, whatever of it is over when the last request has been handled.
func TestPatience(t *testing.T) {
	t.Parallel()
	left := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name                    string
		graceful, manager       time.Duration
		handled                 time.Duration // after left
		handlers, operationsEnd time.Duration
	}{
		{"defaults", 180 * time.Second, 160 * time.Second, 0, 180 * time.Second, 160 * time.Second},
		{"requests took long", 180 * time.Second, 160 * time.Second, 185 * time.Second, 180 * time.Second, 186 * time.Second},
		{"no limit", 0, 160 * time.Second, 0, endless, 160 * time.Second},
		{"nova.conf of an older release", 60 * time.Second, 160 * time.Second, time.Second, 60 * time.Second, 60 * time.Second},
		{"at once", time.Second, 0, 0, time.Second, lastMoment},
	} {
		p := patienceOf(&config.Defaults{GracefulShutdownTimeout: c.graceful, ManagerShutdownTimeout: c.manager})
		require.Equal(t, c.handlers, p.handlers, c.name)
		require.Equal(t, left.Add(c.operationsEnd), p.deadline(left, left.Add(c.handled)), c.name)
	}
}
