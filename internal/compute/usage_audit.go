package compute

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// UsageAudit are the settings of the notifications that metering lives on.
type UsageAudit struct {
	Enabled bool   // [DEFAULT] instance_usage_audit
	Period  string // [DEFAULT] instance_usage_audit_period
}

// usageAuditTask is the name of the audit in the task log.
const usageAuditTask = "instance_usage_audit"

// auditLayout is Python's str of a datetime without a fraction, which the boundaries of periods have not.
const auditLayout = "2006-01-02 15:04:05"

// auditUsage tells once after every audit period which instances were on this host in it; the task log
// keeps a restart from telling twice (nova/compute/manager.py:_instance_usage_audit).
func (m *Manager) auditUsage(ctx context.Context) error {
	if !m.opts.UsageAudit.Enabled {
		return nil
	}
	begin, end := auditPeriod(m.opts.UsageAudit.Period, time.Now().UTC())
	done, err := m.Conductor.TaskLog(ctx, usageAuditTask, begin, end, m.opts.Host)
	if err != nil {
		return fmt.Errorf("read the task log: %w", err)
	}
	if done != nil {
		return nil
	}
	instances, err := m.Conductor.InstancesActiveInWindow(ctx, begin, end, m.opts.Host, "system_metadata", "info_cache", "metadata", "flavor")
	if err != nil {
		return fmt.Errorf("list the instances of the period: %w", err)
	}
	log := &object.TaskLog{
		TaskName: usageAuditTask, Host: m.opts.Host, PeriodBeginning: object.DateTime{Time: begin}, PeriodEnding: object.DateTime{Time: end},
		TaskItems: len(instances), Message: "Instance usage audit started...",
	}
	err = m.Conductor.BeginTask(ctx, log)
	if exception.Is(err, "TaskAlreadyRunning") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("begin the audit: %w", err)
	}
	started := time.Now()
	for _, inst := range instances {
		m.Notify.Instance(reqctx.WithField(ctx, "instance", inst.UUID), notify.Event{
			Action: "exists", Instance: inst, NetworkInfo: inst.NetworkInfo(),
			AuditBegin: begin.Format(auditLayout), AuditEnd: end.Format(auditLayout),
		})
	}
	log.Message = fmt.Sprintf("Instance usage audit ran for host %s, %d instances in %.3f seconds.", m.opts.Host, len(instances), time.Since(started).Seconds())
	if err := m.Conductor.EndTask(ctx, log); err != nil {
		return fmt.Errorf("end the audit: %w", err)
	}
	reqctx.Log(ctx).WithField("instances", len(instances)).WithField("period_ending", end).Info("usage of the last audit period told")
	return nil
}

// auditPeriod is the last period that has ended by now. unit is "hour", "day", "month" or "year" with an
// offset behind "@", in minutes, hours, days or months (nova/utils.py:last_completed_audit_period).
func auditPeriod(unit string, now time.Time) (begin, end time.Time) {
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
