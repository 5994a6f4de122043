// Package notify emits the notifications of nova-compute in their two forms: the legacy
// one (nova/notifications/base.py:info_from_instance) and the versioned one
// (nova/notifications/objects/instance.py). Metering, billing and DNS live on them.
//
// A notification never fails the operation that it tells of.
package notify

import (
	"context"
	"strings"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Sender is the part of rpc.Notifier that is used.
type Sender interface {
	// Notify sends or queues one notification per topic; nil topics are the configured ones.
	Notify(ctx context.Context, topics []string, priority, publisherID, eventType string, payload any) error
	// Enabled reports whether anything leaves the process.
	Enabled() bool
}

// Formats of [notifications] notification_format.
const (
	FormatUnversioned = "unversioned"
	FormatVersioned   = "versioned"
	FormatBoth        = "both"
)

// Priorities.
const (
	priorityInfo  = "INFO"
	priorityError = "ERROR"
)

// Options are the settings of an Emitter.
type Options struct {
	Host            string          // this service's host
	Format          string          // FormatUnversioned ("" too), FormatVersioned or FormatBoth
	VersionedTopics []string        // [notifications] versioned_notifications_topics; nil is versioned_notifications
	Release         release.Release // versions of the payloads
	// GlanceEndpoint is the configured address of the image service; "": the one of the
	// request's service catalog.
	GlanceEndpoint string
	// NameTemplate is [DEFAULT] instance_name_template; "" is "instance-%08x".
	NameTemplate string
	// BDMs reads an instance's block device mappings for events that come without; nil
	// when [notifications] bdms_in_notifications is off.
	BDMs func(ctx context.Context, uuid string) ([]*object.BlockDeviceMapping, error)
}

// Emitter builds and sends notifications. It is safe for concurrent use.
type Emitter struct {
	sender    Sender
	o         Options
	legacy    bool
	versioned bool
}

// New returns an emitter.
func New(s Sender, o Options) *Emitter {
	if len(o.VersionedTopics) == 0 {
		o.VersionedTopics = []string{"versioned_notifications"}
	}
	return &Emitter{
		sender: s, o: o,
		legacy:    o.Format == "" || o.Format == FormatUnversioned || o.Format == FormatBoth,
		versioned: o.Format == FormatVersioned || o.Format == FormatBoth,
	}
}

// Enabled reports whether events go anywhere; if not, callers need not load anything for them.
func (e *Emitter) Enabled() bool { return e.sender.Enabled() }

// Event is something that happened to an instance.
type Event struct {
	// Action in the words of the versioned form, e.g. "power_off", "resize_prep",
	// "create_ip"; Phase is "start", "end", "error" or "".
	Action, Phase string
	// Instance with flavor, metadata and system_metadata loaded, for the versioned form
	// also info_cache, and for "create" keypairs and tags.
	Instance *object.Instance
	// NetworkInfo, when not nil, adds fixed_ips to the legacy form.
	NetworkInfo object.NetworkInfo
	// Extra are further keys of the legacy form, e.g. message.
	Extra map[string]any
	// Err is the failure of an error phase.
	Err error
	// BDMs, when not nil, are the block devices that the versioned form shows (volumes only).
	BDMs []*object.BlockDeviceMapping
	// Some events exist in one form only, without being marked here: see forms.
	LegacyOnly, VersionedOnly bool

	ImageName                string         // create, rebuild; "" in an evacuation
	SnapshotImageID          string         // snapshot
	VolumeID                 string         // volume_attach, volume_detach
	RescueImageRef           string         // rescue
	NewFlavor                *object.Flavor // resize_prep
	AuditBegin, AuditEnd     string         // exists: the period, as "YYYY-MM-DD HH:MM:SS"
	OldVolumeID, NewVolumeID string         // volume_swap
}

// form says how an action appears in the two forms; a missing one is as its name.
type form struct {
	legacy        string // suffix of the legacy type without phase; "" is the action itself
	payload       string // class of the versioned payload; "" is InstanceActionPayload
	legacyOnly    bool
	versionedOnly bool
	endOnly       bool // the legacy form has one event, at the end and without phase
}

// forms are the actions whose two forms differ (nova/compute/manager.py).
var forms = map[string]form{
	"create":           {payload: "InstanceCreatePayload"},
	"rebuild":          {payload: "InstanceActionRebuildPayload"},
	"rescue":           {payload: "InstanceActionRescuePayload"},
	"snapshot":         {payload: "InstanceActionSnapshotPayload"},
	"exists":           {payload: "InstanceExistsPayload"},
	"resize_prep":      {legacy: "resize.prep", payload: "InstanceActionResizePrepPayload"},
	"resize_finish":    {legacy: "finish_resize"},
	"resize_confirm":   {legacy: "resize.confirm"},
	"resize_revert":    {legacy: "resize.revert"},
	"volume_attach":    {legacy: "volume.attach", payload: "InstanceActionVolumePayload", endOnly: true},
	"volume_detach":    {legacy: "volume.detach", payload: "InstanceActionVolumePayload", endOnly: true},
	"volume_swap":      {payload: "InstanceActionVolumeSwapPayload", versionedOnly: true},
	"interface_attach": {versionedOnly: true},
	"interface_detach": {versionedOnly: true},
	"create_ip":        {legacyOnly: true},
	"delete_ip":        {legacyOnly: true},
}

// Instance emits an event in the configured forms, the legacy one first.
func (e *Emitter) Instance(ctx context.Context, ev Event) {
	if !e.Enabled() {
		return
	}
	log := reqctx.Log(ctx).WithField("action", ev.Action).WithField("phase", ev.Phase)
	if ev.Instance == nil || ev.Instance.Flavor == nil {
		log.Warning("notification is left out: the instance's flavor is not loaded")
		return
	}
	f := forms[ev.Action]
	priority := priorityInfo
	if ev.Err != nil || ev.Phase == "error" {
		priority = priorityError
	}
	if e.legacy && !f.versionedOnly && !ev.VersionedOnly && (!f.endOnly || ev.Phase == "end") {
		err := e.sender.Notify(ctx, nil, priority, "compute."+e.o.Host, f.legacyType(ev), e.legacyPayload(ctx, ev))
		if err != nil {
			log.WithError(err).Warning("legacy notification is lost")
		}
	}
	if e.versioned && !f.legacyOnly && !ev.LegacyOnly {
		payload, err := e.versionedPayload(ctx, ev)
		if err == nil {
			err = e.sender.Notify(ctx, e.o.VersionedTopics, priority, "nova-compute:"+e.o.Host, eventType("instance", ev.Action, ev.Phase), payload)
		}
		if err != nil {
			log.WithError(err).Warning("versioned notification is lost")
		}
	}
}

func (f form) legacyType(ev Event) string {
	suffix := f.legacy
	if suffix == "" {
		suffix = ev.Action
	}
	if f.endOnly {
		return eventType("compute.instance", suffix)
	}
	return eventType("compute.instance", suffix, ev.Phase)
}

// eventType joins the parts that are not empty.
func eventType(parts ...string) string {
	kept := parts[:0:0]
	for _, p := range parts {
		if p != "" {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, ".")
}
