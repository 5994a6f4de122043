package notify

import (
	"context"
	"encoding/json"
	"maps"
	"strings"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Time forms of the legacy payload: str() of an aware datetime, and strtime.
const (
	legacyCreatedLayout = "2006-01-02 15:04:05+00:00"
	legacyTimeLayout    = "2006-01-02T15:04:05.000000"
)

// legacyPayload is info_from_instance with the event's extra keys.
func (e *Emitter) legacyPayload(ctx context.Context, ev Event) map[string]any {
	i, f := ev.Instance, ev.Instance.Flavor
	p := map[string]any{
		"tenant_id":          nullable(i.ProjectID),
		"user_id":            nullable(i.UserID),
		"instance_id":        i.UUID,
		"display_name":       nullable(i.DisplayName),
		"reservation_id":     nullable(i.ReservationID),
		"hostname":           nullable(i.Hostname),
		"instance_type":      f.Name,
		"instance_type_id":   i.InstanceTypeID,
		"instance_flavor_id": f.FlavorID,
		"architecture":       nullable(i.Architecture),
		"memory_mb":          f.MemoryMB,
		"disk_gb":            f.RootGB + f.EphemeralGB,
		"vcpus":              f.VCPUs,
		"root_gb":            f.RootGB,
		"ephemeral_gb":       f.EphemeralGB,
		"host":               nullable(i.Host),
		"node":               nullable(i.Node),
		"availability_zone":  nullable(i.AvailabilityZone),
		"cell_name":          i.CellName,
		"created_at":         "None", // Python's str of no time
		"terminated_at":      legacyTime(i.TerminatedAt),
		"deleted_at":         legacyTime(i.DeletedAt),
		"launched_at":        legacyTime(i.LaunchedAt),
		"image_ref_url":      e.imageURL(ctx, i.ImageRef),
		"os_type":            nullable(i.OSType),
		"kernel_id":          raw(i, "kernel_id"),
		"ramdisk_id":         raw(i, "ramdisk_id"),
		"state":              nullable(i.VMState),
		"state_description":  i.TaskState,
		"progress":           "",
		"access_ip_v4":       nullable(i.AccessIPv4),
		"access_ip_v6":       nullable(i.AccessIPv6),
		"image_meta":         imageMeta(i),
		"metadata":           metadata(i),
	}
	if !i.CreatedAt.IsZero() {
		p["created_at"] = i.CreatedAt.UTC().Format(legacyCreatedLayout)
	}
	if i.Progress != 0 {
		p["progress"] = i.Progress
	}
	if ev.NetworkInfo != nil {
		p["fixed_ips"] = fixedIPs(ev.NetworkInfo)
	}
	if ev.Action == "create" && ev.Phase == "start" || ev.Action == "rebuild" && (ev.Phase == "start" || ev.Phase == "end") {
		p["image_name"] = ev.ImageName
	}
	if ev.VolumeID != "" {
		p["volume_id"] = ev.VolumeID
	}
	if ev.NewFlavor != nil && ev.Phase == "end" {
		p["new_instance_type"], p["new_instance_type_id"] = ev.NewFlavor.Name, ev.NewFlavor.ID
	}
	if ev.AuditBegin != "" {
		p["audit_period_beginning"], p["audit_period_ending"] = ev.AuditBegin, ev.AuditEnd
	}
	maps.Copy(p, ev.Extra)
	if ev.Err != nil {
		code, message := exception.Describe(ev.Err)
		p["exception"], p["message"], p["code"] = repr(ev.Err), message, code
	}
	return p
}

func legacyTime(t object.DateTime) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(legacyTimeLayout)
}

// nullable gives null for an empty string.
func nullable(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// raw gives a field as it is on the wire, where "" and null are both in use; null
// when it is not set.
func raw(o object.Object, field string) json.RawMessage {
	v, ok, err := object.Field(o, field)
	if err != nil || !ok {
		return json.RawMessage("null")
	}
	return v
}

// imageMeta are the image's properties at build time, kept in system_metadata.
func imageMeta(i *object.Instance) map[string]*string {
	out := map[string]*string{}
	for k, v := range i.SystemMetadata {
		if name, ok := strings.CutPrefix(k, "image_"); ok {
			out[name] = v
		}
	}
	return out
}

func metadata(i *object.Instance) map[string]string {
	if i.Metadata == nil {
		return map[string]string{}
	}
	return i.Metadata
}

// fixedIPs lists the addresses of all ports (nova/network/model.py:VIF.fixed_ips).
func fixedIPs(ni object.NetworkInfo) []map[string]any {
	out := []map[string]any{}
	for _, v := range ni {
		for _, s := range v.Network.Subnets {
			for _, ip := range s.IPs {
				floating := ip.FloatingIPs
				if floating == nil {
					floating = []object.IP{}
				}
				out = append(out, map[string]any{
					"address": ip.Address, "type": ip.Type, "version": ip.Version, "meta": ip.Meta,
					"floating_ips": floating, "label": v.Network.Label, "vif_mac": v.Address,
				})
			}
		}
	}
	return out
}

// imageURL is the address of the image (nova/image/glance.py:generate_image_url), or its
// bare id when no address is known.
func (e *Emitter) imageURL(ctx context.Context, ref string) string {
	endpoint := e.o.GlanceEndpoint
	if endpoint == "" {
		endpoint = catalogEndpoint(reqctx.From(ctx).ServiceCatalog, "image")
	}
	if endpoint == "" {
		return ref
	}
	return strings.TrimSuffix(endpoint, "/") + "/images/" + ref
}

// catalogEndpoint finds a service's address in a catalog of keystone's version 2 form:
// internal before public, as [glance] valid_interfaces has it by default.
func catalogEndpoint(catalog json.RawMessage, kind string) string {
	var services []struct {
		Type      string `json:"type"`
		Endpoints []struct {
			Internal string `json:"internalURL"`
			Public   string `json:"publicURL"`
		} `json:"endpoints"`
	}
	if json.Unmarshal(catalog, &services) != nil {
		return "" // a request without a catalog
	}
	for _, s := range services {
		if s.Type != kind {
			continue
		}
		for _, ep := range s.Endpoints {
			if ep.Internal != "" {
				return ep.Internal
			}
			if ep.Public != "" {
				return ep.Public
			}
		}
	}
	return ""
}
