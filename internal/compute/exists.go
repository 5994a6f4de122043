package compute

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/internal/compute/usage"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// notifyExists tells what an instance has been since the current audit period began, before an
// operation changes what is billed (nova/compute/utils.py:notify_usage_exists).
func (m *Manager) notifyExists(ctx context.Context, inst *object.Instance) {
	begin, end := usage.Current(m.opts.UsageAudit.Period, time.Now().UTC())
	m.Notify.Instance(ctx, notify.Event{
		Action: "exists", Instance: inst,
		AuditBegin: begin, AuditEnd: end,
	})
}

// auditUsage tells of the instances of the audit period that has ended.
func (m *Manager) auditUsage(ctx context.Context) error {
	return usage.Audit{Settings: m.opts.UsageAudit, Host: m.opts.Host, Conductor: m.Conductor, Notify: m.Notify}.Run(ctx)
}
