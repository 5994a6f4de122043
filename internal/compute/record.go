package compute

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/imagesync/template"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ephemeral"
	"github.com/compute-agent/compute-agent/vif"
)

// recordBucket holds a record per instance UUID.
const recordBucket = "instances"

// record is what this host has been changed to for one instance, written before
// each change: enough to start the instance without the control plane, and to
// remove every trace of it.
type record struct {
	UUID    string `json:"uuid"`
	Name    string `json:"name"`
	ImageID string `json:"image_id"`
	// Project and Flavor (its name) are for those who look at the host; "": written by an agent that did not keep them.
	Project string       `json:"project,omitempty"`
	Flavor  string       `json:"flavor,omitempty"`
	Root    storage.Root `json:"root"`
	VIFs    []vif.VIF    `json:"vifs"`
	// Ephemeral are the disks beside the root disk.
	Ephemeral []ephemeral.Disk `json:"ephemeral,omitempty"`
	// Shares are the directories of the host that the flavor gives to the guest.
	Shares []flavor.Share `json:"shares,omitempty"`
	// Templates is what the image's templates need at every start; nil: it has none.
	Templates *template.Vars `json:"templates,omitempty"`
	// Bandwidth is the flavor's limit of each port.
	Bandwidth vif.Bandwidth `json:"bandwidth"`
	// Names are the guest's names of the ports, by port id: a port keeps its name for life.
	Names map[string]string `json:"names,omitempty"`
	// Hot: the guest's interfaces changed since it was started.
	Hot bool `json:"hot,omitempty"`
	// PortChange is an attachment or detachment under way.
	PortChange *portChange `json:"port_change,omitempty"`
	// Rescue is what a rescue has put beside the root disk; nil: nothing.
	Rescue  *rescueRecord `json:"rescue,omitempty"`
	Created time.Time     `json:"created"`
	Arch    string        `json:"arch,omitempty"` // lxc.arch of the root file system
	// Evacuation is the migration that brings the instance here from a host that is down, until it is here.
	Evacuation string `json:"evacuation,omitempty"`
	// Incoming: the root disk is, or was, brought here from another host, whose instance it is until finish_resize.
	Incoming *incoming `json:"incoming,omitempty"`
	// Quiesced is the guest's hook that was called for a snapshot, and has to be called once more after it.
	Quiesced string `json:"quiesced,omitempty"`
}

// rescued tells that a rescue system stands in the instance's place.
func (r *record) rescued() bool { return r.Rescue != nil && r.Rescue.Active }

// record reads an instance's record; false: this host knows nothing of it.
func (m *Manager) record(uuid string) (record, bool, error) {
	return state.Get[record](m.DB, recordBucket, uuid)
}

// setVIFs makes a list of ports the instance's. Those that it had keep their names; the others
// get the first free ones, in the order of the list.
func (r *record) setVIFs(vifs []vif.VIF) {
	names := make(map[string]string, len(vifs))
	for i := range vifs {
		v := &vifs[i]
		if at := slices.IndexFunc(r.VIFs, func(old vif.VIF) bool { return old.PortID == v.PortID }); at >= 0 {
			v.QoSPolicy = r.VIFs[at].QoSPolicy // the info cache does not tell
		}
		r.shape(v)
		if name := r.Names[v.PortID]; name != "" {
			names[v.PortID] = name
		}
	}
	r.VIFs, r.Names = vifs, names
	for _, v := range vifs {
		r.nicName(v.PortID)
	}
}

// shape gives a port the flavor's limits, unless Neutron limits it.
func (r *record) shape(v *vif.VIF) {
	if v.Bandwidth = r.Bandwidth; v.QoSPolicy {
		v.Bandwidth = vif.Bandwidth{}
	}
}

// nicName is the guest's name of a port. One without gets the first that is free.
func (r *record) nicName(portID string) string {
	if name := r.Names[portID]; name != "" {
		return name
	}
	used := make(map[string]bool, len(r.Names))
	for _, name := range r.Names {
		used[name] = true
	}
	name := "eth0"
	for i := 1; used[name]; i++ {
		name = "eth" + strconv.Itoa(i)
	}
	if r.Names == nil {
		r.Names = map[string]string{}
	}
	r.Names[portID] = name
	return name
}

// forget takes a port out of the record.
func (r *record) forget(portID string) {
	r.setVIFs(slices.DeleteFunc(slices.Clone(r.VIFs), func(v vif.VIF) bool { return v.PortID == portID }))
}

func listRecords(db *state.DB) (map[string]record, error) {
	return state.List[record](db, recordBucket)
}

func (m *Manager) saveRecord(r record) error {
	return state.Put(m.DB, recordBucket, r.UUID, r)
}

// describe notes whose the instance is, and of what flavor if inst tells.
func (r *record) describe(inst *object.Instance) {
	r.Project = inst.ProjectID
	if inst.Flavor != nil {
		r.Flavor = inst.Flavor.Name
	}
}

// noteFlavor keeps the name of an instance's flavor, which may be another since a resize.
func (m *Manager) noteFlavor(uuid, name string) error {
	rec, ok, err := m.record(uuid)
	if err != nil || !ok || rec.Flavor == name {
		return err
	}
	rec.Flavor = name
	return m.saveRecord(rec)
}

// releaseImage ends an instance's use of its image; an image that is gone is not used.
func (m *Manager) releaseImage(imageID, uuid string) error {
	if imageID == "" {
		return nil
	}
	err := m.Images.Release(imageID, uuid)
	if errors.Is(err, imagesync.ErrNotFound) {
		return nil
	}
	return err
}

// removeTimeout bounds the removal of one instance from the host: a stuck process
// may hold its guest for long, and the record survives for another try.
const removeTimeout = 2 * time.Minute

// removeFromHost takes back all that was done on this host for an instance, in this
// order: guest, links, console port, root disks (its own, and those of a rescue or a
// snapshot beside it), ephemeral disks, config drive, mounts of shares, the references to its images, id
// range, record. It needs no more than the record, works on any part of it, and may be
// repeated. The ids and the record stay until everything else is gone.
func (m *Manager) removeFromHost(ctx context.Context, uuid string) error {
	if err := m.destroyGuest(ctx, uuid); err != nil {
		return err
	}
	return m.removeTraces(ctx, uuid, nil)
}

// destroyGuest stops an instance's guest for good. When it fails, everything else on the
// host is still in use.
func (m *Manager) destroyGuest(ctx context.Context, uuid string) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	if err := m.Driver.Destroy(ctx, uuid); err != nil {
		return fmt.Errorf("destroy guest: %w", err)
	}
	return nil
}

// removeTraces takes back all but the guest, which must be gone. extra are VIFs that the
// record may not have, from the info cache of an instance built elsewhere.
func (m *Manager) removeTraces(ctx context.Context, uuid string, extra []vif.VIF) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	r, _, err := m.record(uuid)
	if err != nil && !errors.Is(err, state.ErrDamaged) { // then the info cache has the ports
		return err
	}
	var errs []error
	step := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	known := map[string]bool{}
	for _, v := range append(r.VIFs, extra...) {
		if !known[v.PortID] {
			known[v.PortID] = true
			err := m.Plugger.Unplug(ctx, v)
			if errors.Is(err, vif.ErrUnsupported) || errors.Is(err, vif.ErrNotBound) {
				err = nil // it was never plugged
			}
			step("unplug port "+v.PortID, err)
		}
	}
	step("release console", m.consoles.Forget(uuid))
	step("delete root disks", errors.Join(m.checkPool(r.Root.Pool), m.deleteRoots(ctx, uuid)))
	step("delete ephemeral disks", m.Ephemeral.Delete(ctx, uuid))
	step("remove config drive", m.Drives.Remove(ctx, uuid))
	step("remove shares", m.Shares.Remove(uuid))
	step("release image", m.releaseImage(r.ImageID, uuid))
	if r.Rescue != nil {
		step("release rescue image", m.releaseImage(r.Rescue.ImageID, uuid+rescueReference))
	}
	if len(errs) == 0 {
		// Ids may be given to others only when no file of theirs is left.
		step("release id range", m.DB.ReleaseRange(uuid))
	}
	if len(errs) == 0 {
		step("delete record", state.Delete(m.DB, recordBucket, uuid))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	reqctx.Log(ctx).Debug("instance removed from the host")
	return nil
}

// deleteRoots deletes an instance's root disk and those beside it, such as a rescue's.
func (m *Manager) deleteRoots(ctx context.Context, uuid string) error {
	err := m.Roots.Delete(ctx, uuid)
	roots, listErr := m.Roots.List(ctx)
	err = errors.Join(err, listErr)
	for _, id := range roots {
		if id != uuid && storage.Owner(id) == uuid {
			err = errors.Join(err, m.Roots.Delete(ctx, id))
		}
	}
	return err
}
