// Package usage tells metering which instances were on this host in an audit period (nova/compute/manager.py:_instance_usage_audit,
// nova/utils.py:last_completed_audit_period).
package usage

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Settings are those of the notifications that metering lives on.
type Settings struct {
	Enabled bool   // [DEFAULT] instance_usage_audit
	Period  string // [DEFAULT] instance_usage_audit_period
}

// taskName is the audit's in the task log.
const taskName = "instance_usage_audit"

const (
	// boundaryLayout is Python's str of a datetime without a fraction, which the boundaries of periods have not.
	boundaryLayout = "2006-01-02 15:04:05"
	// nowLayout is Python's str of the present moment.
	nowLayout = "2006-01-02 15:04:05.000000"
)

// Audit tells of the instances of one host.
type Audit struct {
	Settings
	Host      string
	Conductor *conductor.Client
	Notify    *notify.Emitter
}

// Run tells once after every audit period which instances were on this host in it; the task log
// keeps a restart from telling twice (nova/compute/manager.py:_instance_usage_audit).
func (a Audit) Run(ctx context.Context) error {
	if !a.Enabled {
		return nil
	}
	begin, end := lastPeriod(a.Period, time.Now().UTC())
	done, err := a.Conductor.TaskLog(ctx, taskName, begin, end, a.Host)
	if err != nil {
		return fmt.Errorf("read the task log: %w", err)
	}
	if done != nil {
		return nil
	}
	instances, err := a.Conductor.InstancesActiveInWindow(ctx, begin, end, a.Host, "system_metadata", "info_cache", "metadata", "flavor")
	if err != nil {
		return fmt.Errorf("list the instances of the period: %w", err)
	}
	log := &object.TaskLog{
		TaskName: taskName, Host: a.Host, PeriodBeginning: object.DateTime{Time: begin}, PeriodEnding: object.DateTime{Time: end},
		TaskItems: len(instances), Message: "Instance usage audit started...",
	}
	err = a.Conductor.BeginTask(ctx, log)
	if exception.Is(err, "TaskAlreadyRunning") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("begin the audit: %w", err)
	}
	started := time.Now()
	for _, inst := range instances {
		a.Notify.Instance(reqctx.WithField(ctx, "instance", inst.UUID), notify.Event{
			Action: "exists", Instance: inst, // without addresses in the legacy form (nova/compute/utils.py:notify_usage_exists)
			AuditBegin: begin.Format(boundaryLayout), AuditEnd: end.Format(boundaryLayout),
		})
	}
	log.Message = fmt.Sprintf("Instance usage audit ran for host %s, %d instances in %.3f seconds.", a.Host, len(instances), time.Since(started).Seconds())
	if err := a.Conductor.EndTask(ctx, log); err != nil {
		return fmt.Errorf("end the audit: %w", err)
	}
	reqctx.Log(ctx).WithField("instances", len(instances)).WithField("period_ending", end).Info("usage of the last audit period told")
	return nil
}

// Current gives the audit period that now is in, from its begin to now, as notifications have it.
func Current(unit string, now time.Time) (begin, end string) {
	return lastBoundary(unit, now).Format(boundaryLayout), now.Format(nowLayout)
}

// lastPeriod is the last period that has ended by now. unit is "hour", "day", "month" or "year" with an
// offset behind "@", in minutes, hours, days or months (nova/utils.py:last_completed_audit_period).
func lastPeriod(unit string, now time.Time) (begin, end time.Time) {
	end = lastBoundary(unit, now)
	return lastBoundary(unit, end), end
}

// lastBoundary is the last beginning of a period before a moment.
func lastBoundary(unit string, before time.Time) time.Time {
	unit, text, _ := strings.Cut(unit, "@")
	offset, _ := strconv.Atoi(text) // the configuration admits numbers only; none is no offset
	y, month, d := before.Date()
	var begin, earlier time.Time
	switch unit {
	case "hour":
		begin = time.Date(y, month, d, before.Hour(), offset, 0, 0, time.UTC)
		earlier = begin.Add(-time.Hour)
	case "day":
		begin = time.Date(y, month, d, offset, 0, 0, 0, time.UTC)
		earlier = begin.AddDate(0, 0, -1)
	case "year":
		begin = time.Date(y, time.Month(max(offset, 1)), 1, 0, 0, 0, 0, time.UTC)
		earlier = begin.AddDate(-1, 0, 0)
	default:
		begin = time.Date(y, month, max(offset, 1), 0, 0, 0, 0, time.UTC)
		earlier = time.Date(y, month-1, max(offset, 1), 0, 0, 0, 0, time.UTC)
	}
	if begin.Before(before) {
		return begin
	}
	return earlier
}
