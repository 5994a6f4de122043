package compute

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/imagesync/template"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/vif"
)

// applyTemplates makes the files of a new guest that its image has templates for. What
// they are made of is recorded first, for the starts that follow.
func (s *spawn) applyTemplates(ctx context.Context) error {
	first := template.Create
	if s.r.Image.Property("image_type") == "snapshot" {
		first = template.Copy // of the server that the snapshot was taken of
	}
	if !template.Needed(s.image, first, template.Start) {
		return nil
	}
	s.mu.Lock()
	s.rec.Templates = s.m.templateVars(ctx, s.inst, s.image)
	rec := s.rec
	err := s.m.saveRecord(rec)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.m.writeTemplates(ctx, rec, s.image, s.rootfs, first, template.Start)
}

// applyStartTemplates makes the files again that are made at every start. A guest that
// runs already is left alone.
func (m *Manager) applyStartTemplates(ctx context.Context, rec record, rootfs string) error {
	if rec.Templates == nil {
		return nil
	}
	image, ok, err := m.Images.Get(ctx, rec.ImageID)
	if err != nil {
		return err
	}
	if !ok || !template.Needed(image, template.Start) {
		return nil
	}
	info, err := m.Driver.Info(ctx, rec.UUID)
	if err != nil && !errors.Is(err, driver.ErrNotFound) {
		return err
	}
	if info.InitPID != 0 {
		return nil
	}
	return m.writeTemplates(ctx, rec, image, rootfs, template.Start)
}

// writeTemplates applies templates; what an image does wrong is no reason not to start its guest.
func (m *Manager) writeTemplates(ctx context.Context, rec record, image imagesync.Image, rootfs string, triggers ...string) error {
	vars := *rec.Templates
	vars.Devices = templateDevices(rec.VIFs)
	warnings, err := template.Apply(ctx, template.Request{
		Image: image, Triggers: triggers, Root: rootfs, IDBase: rec.Root.IDs.Base, IDCount: rec.Root.IDs.Size, Vars: vars,
	})
	for _, w := range warnings {
		reqctx.Log(ctx).WithField("image_id", image.ID).WithField("file", w.Path).WithField("reason", w.Reason).
			Warning("template of the image not applied, its file is left as it is")
	}
	return err
}

// templateVars describes a server in the words of LXD: its name there is the host name
// here, and config has the keys that templates of published images ask for.
func (m *Manager) templateVars(ctx context.Context, inst *object.Instance, image imagesync.Image) *template.Vars {
	limits, _, err := flavor.FromSpecs(flavor.Flavor{
		Name: inst.Flavor.Name, VCPUs: inst.Flavor.VCPUs, MemoryMB: inst.Flavor.MemoryMB, ExtraSpecs: inst.Flavor.ExtraSpecs,
	}, m.opts.FlavorPolicy)
	if err != nil { // prepareRoot has asked the same before
		reqctx.Log(ctx).WithError(err).Warning("flavor not read for the image's templates")
	}
	config := map[string]string{
		"limits.cpu":                      strconv.Itoa(inst.Flavor.VCPUs),
		"limits.memory":                   strconv.Itoa(inst.Flavor.MemoryMB) + "MiB",
		"security.nesting":                strconv.FormatBool(limits.Nested),
		"security.privileged":             strconv.FormatBool(limits.Privileged),
		"volatile.base_image":             image.Fingerprint,
		"volatile.uuid":                   inst.UUID,
		"volatile.cloud-init.instance-id": inst.UUID,
	}
	for key, value := range image.Metadata.Properties {
		config["image."+key] = value
	}
	for key, value := range inst.Metadata {
		if strings.HasPrefix(key, "user.") {
			config[key] = value
		}
	}
	maps.Copy(config, cloudInitConfig(ctx, inst))
	return &template.Vars{
		Instance: map[string]string{
			"name": inst.Hostname, "architecture": image.Metadata.Arch(), "type": "container",
			"privileged": strconv.FormatBool(limits.Privileged), "ephemeral": "false",
		},
		Config: config,
	}
}

// cloudInitConfig is the server's user data and key under the names that templates of
// cloud-init's seed know. Without them such a seed would hide the metadata service.
func cloudInitConfig(ctx context.Context, inst *object.Instance) map[string]string {
	config := map[string]string{}
	if inst.UserData != "" {
		data, err := base64.StdEncoding.DecodeString(inst.UserData)
		if err != nil {
			reqctx.Log(ctx).Warning("user data is not base64; the image's templates go without it")
		} else {
			config["user.user-data"], config["cloud-init.user-data"] = string(data), string(data)
		}
	}
	if key := strings.TrimSpace(inst.KeyData); key != "" {
		// A line of YAML for the end of a meta-data file.
		config["user.meta-data"] = fmt.Sprintf("public-keys: [%q]", key)
	}
	return config
}

// templateDevices describes the root disk and the interfaces as LXD's devices.
func templateDevices(vifs []vif.VIF) map[string]map[string]string {
	devices := map[string]map[string]string{"root": {"type": "disk", "path": "/"}}
	for i, v := range vifs {
		name := "eth" + strconv.Itoa(i)
		devices[name] = map[string]string{"type": "nic", "name": name, "hwaddr": v.MAC, "mtu": strconv.Itoa(v.MTU)}
	}
	return devices
}
