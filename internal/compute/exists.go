package compute

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// auditNow is Python's str of the present moment.
const auditNow = "2006-01-02 15:04:05.000000"

// notifyExists tells what an instance has been since the current audit period began, before an
// operation changes what is billed (nova/compute/utils.py:notify_usage_exists).
func (m *Manager) notifyExists(ctx context.Context, inst *object.Instance) {
	now := time.Now().UTC()
	m.Notify.Instance(ctx, notify.Event{
		Action: "exists", Instance: inst,
		AuditBegin: lastBoundary(m.opts.UsageAudit.Period, now).Format(auditLayout), AuditEnd: now.Format(auditNow),
	})
}
