package compute

import (
	"context"
	"errors"

	"github.com/compute-agent/compute-agent/internal/compute/inject"
	"github.com/compute-agent/compute-agent/internal/compute/metadata"
	"github.com/compute-agent/compute-agent/internal/guestfile"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// inject writes into the new root disk what the operator allows.
func (s *spawn) inject(ctx context.Context) error {
	policy := s.r.Image.Property(metadata.ImageConfigDrive)
	if !s.m.injects(s.inst, policy) {
		return nil
	}
	files, err := metadata.Files(s.r.InjectedFiles)
	if err != nil {
		return err
	}
	content, err := s.m.injected(ctx, s.inst)
	if err != nil {
		return err
	}
	for _, f := range files {
		content.Files = append(content.Files, inject.File(f))
	}
	if s.m.opts.Injection.Password && s.r.AdminPassword != nil {
		content.User, content.Password = imageAdminUser(&s.r.Image), *s.r.AdminPassword
	}
	err = writeInto(ctx, s.rootfs, s.rec.Root.IDs, content)
	if errors.As(err, new(*inject.FileError)) {
		return abortBecause(s.inst.UUID, err) // the image is the same on every host
	}
	return err
}

// injects tells whether a new root disk of a server is written into; policy is its image's img_config_drive. One that has a config drive
// learns it from there (nova/virt/libvirt/driver.py:_create_and_inject_local_root).
func (m *Manager) injects(inst *object.Instance, policy string) bool {
	return m.opts.Injection.Enabled && !m.opts.ConfigDrive.Wanted(inst, policy)
}

// injected is what every new root disk of a server gets: its owner's key and its metadata.
func (m *Manager) injected(ctx context.Context, inst *object.Instance) (inject.Content, error) {
	if err := m.Conductor.LoadInstance(ctx, inst, "metadata"); err != nil {
		return inject.Content{}, err
	}
	content := inject.Content{Metadata: inst.Metadata}
	if m.opts.Injection.Key {
		content.Key = inst.KeyData
	}
	return content, nil
}

// writeInto writes into a root disk that is mounted. What the server can go without is a warning.
func writeInto(ctx context.Context, rootfs string, ids storage.IDRange, content inject.Content) error {
	warnings, err := inject.Into(ctx, rootfs, guestfile.IDs{Base: ids.Base, Count: ids.Size}, content)
	for _, w := range warnings {
		reqctx.Log(ctx).WithError(w.Err).WithField("what", w.What).Warning("not written into the new root disk")
	}
	return err
}
