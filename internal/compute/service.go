package compute

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// binary is the name under which Nova knows this service, whatever program it is.
const binary = "nova-compute"

// Service is this host's service record and its report of life
// (nova/service.py:Service, nova/servicegroup/drivers/db.py).
type Service struct {
	conductor *conductor.Client
	host      string
	version   int // the control plane's own SERVICE_VERSION: a statement of what this service can do
	interval  time.Duration
	record    *object.Service
	turned    atomic.Pointer[time.Time] // when Report last began to report; nil before it runs
}

// NewService returns the service of a host; Register must be called before Report.
func NewService(c *conductor.Client, host string, version int, interval time.Duration) *Service {
	return &Service{conductor: c, host: host, version: version, interval: interval}
}

// Register finds or creates the service record, with the version that the release demands.
func (s *Service) Register(ctx context.Context) error {
	record, err := s.conductor.ServiceByHost(ctx, s.host, binary)
	if err != nil {
		return fmt.Errorf("look up the service record: %w", err)
	}
	if record == nil {
		record, err = s.create(ctx)
		if err != nil {
			return fmt.Errorf("create the service record: %w", err)
		}
	}
	s.record = record
	if record.ServiceVersion != s.version {
		if err := s.conductor.SetServiceVersion(ctx, record, s.version); err != nil {
			return fmt.Errorf("set the service version: %w", err)
		}
	}
	return nil
}

// create makes the record; one that another start made in the same moment is taken over.
func (s *Service) create(ctx context.Context) (*object.Service, error) {
	record := &object.Service{Host: s.host, Binary: binary, Topic: "compute", ServiceVersion: s.version}
	err := s.conductor.CreateService(ctx, record)
	if !exception.Is(err, "ServiceTopicExists") && !exception.Is(err, "ServiceBinaryExists") {
		return record, err
	}
	found, lookupErr := s.conductor.ServiceByHost(ctx, s.host, binary)
	if lookupErr == nil && found == nil {
		return nil, err // it was deleted again
	}
	return found, lookupErr
}

// Record returns the service record.
func (s *Service) Record() *object.Service { return s.record }

// Beat reports once. The count must exceed the stored one, or the row is not touched
// (nova/db/main/api.py:service_update), so it goes on from what was read.
func (s *Service) Beat(ctx context.Context) error {
	s.record.ReportCount++
	return s.conductor.ReportService(ctx, s.record)
}

func (s *Service) turn() {
	now := time.Now()
	s.turned.Store(&now)
}

// Turns tells whether Report goes on: whether the control plane answers does not matter, but each report ends in time.
// A service that hangs is down for Nova and cannot tell why.
func (s *Service) Turns() bool {
	last := s.turned.Load()
	return last != nil && time.Since(*last) <= s.interval*(reportPatience+2)
}

// reportPatience is how many intervals one report may take.
const reportPatience = 6

// Report reports at every interval until ctx ends. A report that fails is repeated at
// the next turn; the reader allows several to be missed.
func (s *Service) Report(ctx context.Context) error {
	tick := time.NewTicker(s.interval)
	defer tick.Stop()
	failing := false
	s.turn()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		s.turn()
		rctx, cancel := context.WithTimeout(adminContext(ctx), s.interval*reportPatience)
		err := s.Beat(rctx)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !failing:
			reqctx.Log(rctx).WithError(err).Error("service report failed; trying again at every report_interval")
		case err == nil && failing:
			reqctx.Log(rctx).Info("service reports again")
		}
		failing = err != nil
	}
}
