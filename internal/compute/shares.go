package compute

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// ShareStore mounts directories of the host for servers (hostshare.Store).
type ShareStore interface {
	Path(instanceID, name string) string
	Check(names []string) error
	Mount(instanceID string, ids storage.IDRange, names []string) error
	Unmount(instanceID string) error
	Remove(instanceID string) error
}

// sharesOf are the directories of the host that a flavor gives to its servers.
func sharesOf(uuid string, f *object.Flavor) ([]flavor.Share, error) {
	shares, err := flavor.Shares(flavor.Flavor{Name: f.Name, EphemeralGB: f.EphemeralGB, ExtraSpecs: f.ExtraSpecs})
	if err != nil {
		return nil, abortBecause(uuid, err)
	}
	return shares, nil
}

func shareNames(shares []flavor.Share) []string {
	names := make([]string, 0, len(shares))
	for _, s := range shares {
		names = append(names, s.Name)
	}
	return names
}

// checkShares refuses a flavor whose directories this host does not have: another host may.
func (m *Manager) checkShares(uuid string, f *object.Flavor) error {
	shares, err := sharesOf(uuid, f)
	if err != nil {
		return err
	}
	return m.Shares.Check(shareNames(shares))
}

// shareBinds tell the driver where a guest sees the directories. Those of a rescue system are its own.
func (m *Manager) shareBinds(rec record) []driver.Bind {
	binds := make([]driver.Bind, 0, len(rec.Shares))
	for _, s := range rec.Shares {
		binds = append(binds, driver.Bind{Source: m.Shares.Path(rec.UUID, s.Name), Target: s.Target})
	}
	return binds
}

// mountShares mounts an instance's directories of the host before its guest starts. A rescue system has none.
func (m *Manager) mountShares(rec record) error {
	if rec.rescued() {
		return nil
	}
	return m.Shares.Mount(rec.UUID, rec.Root.IDs, shareNames(rec.Shares))
}

// changeShares gives an instance of this host the directories of another flavor, for which its guest is stopped: what a guest
// sees of the host is settled when it starts. The record comes last, so that a start of the agent that finds the old one begins anew.
func (m *Manager) changeShares(ctx context.Context, inst *object.Instance, wanted *object.Flavor, limits flavor.Limits) error {
	rec, ok, err := m.record(inst.UUID)
	if err != nil || !ok {
		return errors.Join(err, driver.ErrNotFound)
	}
	want, err := sharesOf(inst.UUID, wanted)
	if err != nil || slices.Equal(want, rec.Shares) {
		return err
	}
	if err := m.Shares.Check(shareNames(want)); err != nil {
		return err
	}
	reqctx.Log(ctx).Info("stopping the guest to change the directories of the host that it has")
	if err := m.powerOff(ctx, inst.UUID, m.shutdownTimeout(inst)); err != nil {
		return err
	}
	if err := m.Shares.Remove(inst.UUID); err != nil {
		return err
	}
	rec.Shares = want
	if err := m.restartHere(ctx, inst, rec, limits); err != nil {
		return fmt.Errorf("start with other shares: %w", err)
	}
	return m.saveRecord(rec)
}
