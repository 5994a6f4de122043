package compute

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/internal/compute/usage"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// notifyInstance tells of an operation's phase. The payload needs the flavor and the
// addresses, which requests often lack: they are loaded only if somebody listens.
func (m *Manager) notifyInstance(ctx context.Context, inst *object.Instance, action, phase string) {
	e := notify.Event{Action: action, Phase: phase, Instance: inst}
	if listsDevices[action] {
		e.BDMs = noVolumes
	}
	m.notifyEvent(ctx, e)
}

// listsDevices are the actions of which nova-compute tells the block devices also where [notifications]
// bdms_in_notifications is off, because it has just read them (nova/compute/manager.py).
var listsDevices = map[string]bool{"delete": true, "shutdown": true, "reboot": true, "resume": true}

// noVolumes are the volumes that a server here has.
var noVolumes = []*object.BlockDeviceMapping{}

func (m *Manager) notifyEvent(ctx context.Context, e notify.Event) {
	if !m.Notify.Enabled() {
		return
	}
	if err := m.Conductor.LoadInstance(ctx, e.Instance, "flavor", "info_cache", "metadata", "system_metadata"); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("notification not sent: instance not loaded")
		return
	}
	m.Notify.Instance(ctx, e)
}

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
