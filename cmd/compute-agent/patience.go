package main

import (
	"time"

	"github.com/compute-agent/compute-agent/config"
)

// patience is how long the agent's end waits.
type patience struct {
	handlers   time.Duration // for requests that are being handled
	operations time.Duration // for operations that outlive their request
}

// endless is a wait without a limit: systemd's TimeoutStopSec ends it.
const endless = 365 * 24 * time.Hour

func patienceOf(c *config.Defaults) patience {
	all := c.GracefulShutdownTimeout
	if all == 0 {
		all = endless
	}
	return patience{handlers: all, operations: min(all, c.ManagerShutdownTimeout)}
}

// lastMoment is what operations get in any case that the last requests have begun.
const lastMoment = time.Second

// deadline is the end of the wait for operations of an agent that left at a time, when its last request has been handled.
func (p patience) deadline(left, handled time.Time) time.Time {
	end := left.Add(p.operations)
	if soonest := handled.Add(lastMoment); end.Before(soonest) {
		return soonest
	}
	return end
}
