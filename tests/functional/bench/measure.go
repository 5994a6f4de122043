package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/tests/functional/agent"
	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
	"github.com/compute-agent/compute-agent/tests/functional/lab"
)

// subject is a compute service that can be measured.
type subject interface {
	name() string
	host() string
	start(ctx context.Context) error // returns when its host may be chosen
	launch() error
	stop(ctx context.Context) error
	pid() int
}

type agentSubject struct {
	*lab.Lab
	title string
}

func (s agentSubject) name() string                    { return s.title }
func (s agentSubject) host() string                    { return s.Host }
func (s agentSubject) start(ctx context.Context) error { return s.StartAgent(ctx) }
func (s agentSubject) launch() error                   { return s.Agent.Start() }
func (s agentSubject) stop(ctx context.Context) error  { return s.StopAgent(ctx) }
func (s agentSubject) pid() int                        { return s.Agent.PID() }

type peerSubject struct{ *lab.Lab }

func (s peerSubject) name() string                    { return "nova-compute, fake driver" }
func (s peerSubject) host() string                    { return controlplane.PeerHost }
func (s peerSubject) start(ctx context.Context) error { return s.Plane.StartPeer(ctx) }
func (s peerSubject) launch() error                   { return s.Plane.LaunchPeer() }
func (s peerSubject) stop(ctx context.Context) error  { return s.Plane.StopPeer(ctx) }
func (s peerSubject) pid() int                        { return s.Plane.PeerPID() }

// figures of one subject.
type figures struct {
	name         string
	up           time.Duration // from the start of the process to its first report
	residentKB   int           // with no server
	active, gone []time.Duration
	bootCalls    map[string]int // calls to the conductor, by what is called
	deleteCalls  map[string]int
	idleCalls    map[string]int
}

const idleFor = 70 * time.Second // every periodic task of a minute runs at least once

type bench struct{ *lab.Lab }

// latencies starts the subjects and boots servers on one after the other.
func (b bench) latencies(ctx context.Context, boots int, subjects ...subject) ([]figures, error) {
	results := make([]figures, len(subjects))
	for i, s := range subjects {
		b.Plane.Say("%s: start", s.name())
		f := &results[i]
		f.name = s.name()
		if err := s.start(ctx); err != nil { // the first start registers the host, and is not the usual one
			return nil, err
		}
		if err := s.stop(ctx); err != nil {
			return nil, err
		}
		var err error
		if f.up, err = b.timeToUp(ctx, s); err != nil {
			return nil, err
		}
		if err := s.start(ctx); err != nil { // nothing to start any more, but to wait for the scheduler
			return nil, err
		}
		if f.residentKB, err = agent.ResidentKB(s.pid()); err != nil {
			return nil, err
		}
		if _, _, err := b.bootAndDelete(ctx, s.host()); err != nil { // the image comes to the host
			return nil, err
		}
	}
	b.Plane.Say("%d servers on each, one after the other", boots)
	for range boots {
		for i, s := range subjects {
			active, gone, err := b.bootAndDelete(ctx, s.host())
			if err != nil {
				return nil, err
			}
			results[i].active, results[i].gone = append(results[i].active, active), append(results[i].gone, gone)
		}
	}
	return results, nil
}

// messages counts the calls to the conductor while one subject runs.
func (b bench) messages(ctx context.Context, s subject, f *figures) error {
	b.Plane.Say("%s: messages", f.name)
	var id string
	var err error
	if f.bootCalls, err = b.conductorCalls(ctx, func() error {
		id, _, err = b.boot(ctx, s.host())
		return err
	}); err != nil {
		return err
	}
	if f.deleteCalls, err = b.conductorCalls(ctx, func() error { return b.remove(ctx, id) }); err != nil {
		return err
	}
	f.idleCalls, err = b.conductorCalls(ctx, func() error { return sleep(ctx, idleFor) })
	return err
}

// timeToUp starts the subject and waits for its first report.
func (b bench) timeToUp(ctx context.Context, s subject) (time.Duration, error) {
	if err := sleep(ctx, 2*time.Second); err != nil { // for the last report of the process before to be in the database
		return 0, err
	}
	before, err := b.Reports(ctx, s.host())
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := s.launch(); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = cloud.Poll(ctx, 20*time.Millisecond, "report of "+s.name(), func() (bool, error) {
		now, err := b.Reports(ctx, s.host())
		return now > before, err
	})
	return time.Since(began), err
}

// boot boots a Debian server on the host and returns its id and how long it took to be ACTIVE.
func (b bench) boot(ctx context.Context, hostname string) (string, time.Duration, error) {
	return b.bootOf(ctx, b.Debian, b.Small, hostname)
}

func (b bench) bootOf(ctx context.Context, image, flavor, hostname string) (string, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	began := time.Now()
	id, err := b.Admin.CreateServer(ctx, cloud.NewServer{
		Name: "bench", Image: image, Flavor: flavor, Networks: cloud.OnNetwork(b.Network), AvailabilityZone: "nova:" + hostname,
	})
	if err != nil {
		return "", 0, err
	}
	_, err = b.Admin.WaitStatus(ctx, id, "ACTIVE")
	return id, time.Since(began), err
}

func (b bench) remove(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := b.Admin.DeleteServer(ctx, id); err != nil {
		return err
	}
	return b.Admin.WaitGone(ctx, id)
}

func (b bench) bootAndDelete(ctx context.Context, hostname string) (active, gone time.Duration, err error) {
	id, active, err := b.boot(ctx, hostname)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	err = b.remove(ctx, id)
	return active, time.Since(began), err
}

// conductorCalls counts what compute services ask of the conductor during do. Of the calls that nova's other services make to it
// none is an object call.
func (b bench) conductorCalls(ctx context.Context, do func() error) (map[string]int, error) {
	trace, err := b.Plane.Trace(ctx)
	if err != nil {
		return nil, err
	}
	doErr := do()
	if doErr == nil {
		doErr = sleep(ctx, time.Second) // what follows at once belongs to it
	}
	messages, err := trace.Stop(ctx)
	if err != nil {
		return nil, err
	}
	calls := map[string]int{}
	for _, m := range messages {
		if m.Key == "conductor" && strings.HasPrefix(m.Method, "object_") {
			calls[strings.Trim(m.Object+"."+m.Operation, ".")]++
		}
	}
	return calls, doErr
}

// crowd is what many servers at once take.
type crowd struct {
	guests       int
	single       []time.Duration // one such server alone, create to ACTIVE
	active, gone time.Duration
	residentKB   int
	idle         float64 // of one core, while nothing is asked of the agent
}

// What crowd measures beside the crowd itself.
const (
	singles    = 3
	settleTime = 15 * time.Second // until the guests have started
	idleSample = time.Minute      // in which every periodic task of a minute runs once
)

func (b bench) crowd(ctx context.Context, guests int) (crowd, error) {
	c := crowd{guests: guests}
	if guests == 0 {
		return c, nil
	}
	b.Plane.Say("compute-agent: %d servers at once", guests)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	for range singles {
		id, took, err := b.bootOf(ctx, b.Busybox, b.Nano, b.Host)
		if err != nil {
			return c, err
		}
		c.single = append(c.single, took)
		if err := b.remove(ctx, id); err != nil {
			return c, err
		}
	}
	const name = "crowd"
	began := time.Now()
	_, err := b.Admin.CreateServer(ctx, cloud.NewServer{
		Name: name, Image: b.Busybox, Flavor: b.Nano, Networks: cloud.OnNetwork(b.Network),
		AvailabilityZone: "nova:" + b.Host, MinCount: guests, MaxCount: guests,
	})
	if err != nil {
		return c, err
	}
	servers, err := b.Admin.Servers(ctx, name)
	if err != nil {
		return c, err
	}
	for _, server := range servers {
		if _, err := b.Admin.WaitStatus(ctx, server.ID, "ACTIVE"); err != nil {
			return c, err
		}
	}
	c.active = time.Since(began)
	if c.residentKB, err = b.Agent.ResidentKB(); err != nil {
		return c, err
	}
	if c.idle, err = b.idleShare(ctx); err != nil {
		return c, err
	}
	began = time.Now()
	for _, server := range servers {
		if err := b.Admin.DeleteServer(ctx, server.ID); err != nil {
			return c, err
		}
	}
	for _, server := range servers {
		if err := b.Admin.WaitGone(ctx, server.ID); err != nil {
			return c, err
		}
	}
	c.gone = time.Since(began)
	if len(servers) != guests {
		return c, fmt.Errorf("boot %d servers: nova made %d", guests, len(servers))
	}
	return c, nil
}

// idleShare is the part of a core that the agent uses while nothing is asked of it.
func (b bench) idleShare(ctx context.Context) (float64, error) {
	if err := sleep(ctx, settleTime); err != nil {
		return 0, err
	}
	before, err := b.Agent.CPUTime()
	if err != nil {
		return 0, err
	}
	if err := sleep(ctx, idleSample); err != nil {
		return 0, err
	}
	after, err := b.Agent.CPUTime()
	return float64(after-before) / float64(idleSample), err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// median of durations; 0 for none.
func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(d))
	return sorted[len(sorted)/2]
}
