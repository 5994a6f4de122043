package notify

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

type fields = map[string]any

// payload makes a payload object; payloads carry all their fields and no changes.
func (e *Emitter) payload(class string, values fields) (*object.Generic, error) {
	version := e.o.Release.PayloadVersion(class)
	if version == "" {
		return nil, fmt.Errorf("build %s: release %s has no such payload", class, e.o.Release)
	}
	g := &object.Generic{Header: object.New(class, version)}
	for name, value := range values {
		b, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("build %s field %s: %w", class, name, err)
		}
		g.Data[name] = b
	}
	return g, nil
}

// copied are the fields of InstancePayload that come from an instance's field as they are.
var copied = map[string]string{
	"uuid": "uuid", "user_id": "user_id", "tenant_id": "project_id", "reservation_id": "reservation_id",
	"display_name": "display_name", "display_description": "display_description", "host_name": "hostname",
	"host": "host", "node": "node", "os_type": "os_type", "architecture": "architecture",
	"availability_zone": "availability_zone", "image_uuid": "image_ref", "key_name": "key_name",
	"kernel_id": "kernel_id", "ramdisk_id": "ramdisk_id", "created_at": "created_at", "launched_at": "launched_at",
	"terminated_at": "terminated_at", "deleted_at": "deleted_at", "updated_at": "updated_at", "state": "vm_state",
	"task_state": "task_state", "progress": "progress",
}

// flavorFields are the fields of FlavorPayload; those that are not loaded are null.
var flavorFields = []string{
	"flavorid", "memory_mb", "vcpus", "root_gb", "ephemeral_gb", "name", "swap", "rxtx_factor", "vcpu_weight",
	"disabled", "is_public", "extra_specs", "projects", "description",
}

func (e *Emitter) versionedPayload(ctx context.Context, ev Event) (*object.Generic, error) {
	class := forms[ev.Action].payload
	if class == "" {
		class = "InstanceActionPayload"
	}
	values, err := e.instanceFields(ctx, ev)
	if err != nil {
		return nil, err
	}
	if class != "InstanceExistsPayload" {
		fault, err := e.fault(ev.Action, ev.Err)
		if err != nil {
			return nil, err
		}
		values["fault"] = fault
	}
	if err := e.ownFields(class, ev, values); err != nil {
		return nil, err
	}
	return e.payload(class, values)
}

// instanceFields are the fields of InstancePayload.
func (e *Emitter) instanceFields(ctx context.Context, ev Event) (fields, error) {
	i := ev.Instance
	values := fields{}
	for name, from := range copied {
		values[name] = raw(i, from)
	}
	flavor, err := e.flavor(i.Flavor)
	if err != nil {
		return nil, err
	}
	addresses, err := e.addresses(i.NetworkInfo())
	if err != nil {
		return nil, err
	}
	devices, err := e.blockDevices(ctx, ev)
	if err != nil {
		return nil, err
	}
	values["flavor"], values["ip_addresses"], values["block_devices"] = flavor, addresses, devices
	values["metadata"], values["locked"] = metadata(i), i.Locked
	values["auto_disk_config"] = "MANUAL"
	if i.AutoDiskConfig {
		values["auto_disk_config"] = "AUTO"
	}
	values["power_state"] = nil
	if i.IsSet("power_state") && !i.IsNull("power_state") || i.PowerState != 0 {
		values["power_state"] = powerState(i.PowerState)
	}
	r := reqctx.From(ctx)
	values["request_id"] = nil // a periodic task's request means nothing to a consumer
	if r.ProjectID != "" && r.UserID != "" {
		values["request_id"] = r.RequestID
	}
	values["action_initiator_user"], values["action_initiator_project"] = nullable(r.UserID), nullable(r.ProjectID)
	values["locked_reason"] = i.SystemMetadata["locked_reason"]
	if e.o.Release.ShareMappings {
		values["shares"] = nil // [notifications] include_share_mapping is off: the agent serves none
	}
	return values, nil
}

// powerState gives the word for a number (nova/objects/fields.py:InstancePowerState).
func powerState(n int) string {
	switch n {
	case 1:
		return "running"
	case 3:
		return "paused"
	case 4:
		return "shutdown"
	case 6:
		return "crashed"
	case 7:
		return "suspended"
	}
	return "pending"
}

func (e *Emitter) flavor(f *object.Flavor) (*object.Generic, error) {
	values := fields{}
	for _, name := range flavorFields {
		values[name] = raw(f, name)
	}
	return e.payload("FlavorPayload", values)
}

func (e *Emitter) addresses(ni object.NetworkInfo) ([]*object.Generic, error) {
	out := []*object.Generic{}
	for _, v := range ni {
		for _, s := range v.Network.Subnets {
			for _, ip := range s.IPs {
				p, err := e.payload("IpPayload", fields{
					"label": v.Network.Label, "mac": v.Address, "meta": v.Meta, "port_uuid": nullable(v.ID),
					"version": ip.Version, "address": ip.Address, "device_name": nullable(v.DevName),
				})
				if err != nil {
					return nil, err
				}
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// blockDevices lists the instance's volumes; nil (null) when the event has no list and
// none may be read.
func (e *Emitter) blockDevices(ctx context.Context, ev Event) ([]*object.Generic, error) {
	bdms := ev.BDMs
	if bdms == nil && e.o.BDMs != nil {
		var err error
		if bdms, err = e.o.BDMs(ctx, ev.Instance.UUID); err != nil {
			return nil, fmt.Errorf("read block devices: %w", err)
		}
		if bdms == nil {
			bdms = []*object.BlockDeviceMapping{}
		}
	}
	if bdms == nil {
		return nil, nil
	}
	out := []*object.Generic{}
	for _, b := range bdms {
		if b.VolumeID == "" {
			continue
		}
		p, err := e.payload("BlockDevicePayload", fields{
			"device_name": raw(b, "device_name"), "boot_index": raw(b, "boot_index"),
			"delete_on_termination": b.DeleteOnTermination, "volume_id": b.VolumeID, "tag": raw(b, "tag"),
		})
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// ownFields are the fields that a class has beyond InstanceActionPayload.
func (e *Emitter) ownFields(class string, ev Event, values fields) (err error) {
	switch class {
	case "InstanceCreatePayload":
		err = e.createFields(ev.Instance, values)
	case "InstanceActionRebuildPayload":
		values["trusted_image_certificates"] = trustedCerts(ev.Instance)
	case "InstanceActionRescuePayload":
		values["rescue_image_ref"] = nullable(ev.RescueImageRef)
	case "InstanceActionSnapshotPayload":
		values["snapshot_image_id"] = ev.SnapshotImageID
	case "InstanceActionVolumePayload":
		values["volume_id"] = ev.VolumeID
	case "InstanceActionVolumeSwapPayload":
		values["old_volume_id"], values["new_volume_id"] = ev.OldVolumeID, ev.NewVolumeID
	case "InstanceActionResizePrepPayload":
		values["new_flavor"] = nil
		if ev.NewFlavor != nil {
			values["new_flavor"], err = e.flavor(ev.NewFlavor)
		}
	case "InstanceExistsPayload":
		values["audit_period"], err = e.payload("AuditPeriodPayload", fields{
			"audit_period_beginning": wireTime(ev.AuditBegin), "audit_period_ending": wireTime(ev.AuditEnd),
		})
	}
	return err
}

// wireTime turns "YYYY-MM-DD HH:MM:SS[.ffffff]" into an object's form.
func wireTime(s string) string {
	date, clock, _ := strings.Cut(s, " ")
	clock, _, _ = strings.Cut(clock, ".")
	return date + "T" + clock + "Z"
}

func (e *Emitter) createFields(i *object.Instance, values fields) error {
	keypairs := []*object.Generic{}
	if i.Keypairs != nil {
		for _, k := range i.Keypairs.Objects {
			p, err := e.payload("KeypairPayload", fields{
				"user_id": raw(k, "user_id"), "name": k.Name, "fingerprint": raw(k, "fingerprint"),
				"public_key": raw(k, "public_key"), "type": k.Type,
			})
			if err != nil {
				return err
			}
			keypairs = append(keypairs, p)
		}
	}
	tags := []string{}
	if i.Tags != nil {
		for _, t := range i.Tags.Objects {
			tags = append(tags, t.Tag)
		}
	}
	values["keypairs"], values["tags"] = keypairs, tags
	values["trusted_image_certificates"] = trustedCerts(i)
	values["instance_name"] = i.Name(e.o.NameTemplate)
	return nil
}

func trustedCerts(i *object.Instance) []string {
	if i.TrustedCerts == nil {
		return nil
	}
	return i.TrustedCerts.IDs
}
