package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/compute/metadata"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// driveBinds gives a guest its config drive, if it has one, where cloud-init looks for one that is no disk
// (DataSourceConfigDrive.py:_get_data).
func (m *Manager) driveBinds(inst *object.Instance, policy string) []driver.Bind {
	if !m.opts.ConfigDrive.Wanted(inst, policy) {
		return nil
	}
	return []driver.Bind{{Source: m.Drives.Path(inst.UUID), Target: "config-drive", ReadOnly: true}}
}

// writeConfigDrive makes a server's config drive; the start mounts it. owner is the host's id of
// the guest's root. Every new guest of a server (build, rebuild, unshelve) gets a new one.
func (m *Manager) writeConfigDrive(ctx context.Context, inst *object.Instance, owner uint32, c metadata.Content) error {
	if err := m.Conductor.LoadInstance(ctx, inst, metadata.Fields...); err != nil {
		return err
	}
	documents, err := m.opts.ConfigDrive.Documents(ctx, m.Release, inst, c)
	if err != nil {
		return err
	}
	return m.Drives.Write(ctx, inst.UUID, owner, documents)
}
