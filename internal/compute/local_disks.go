package compute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ephemeral"
)

// EphemeralStore keeps the disks that instances have beside their root disks (ephemeral.Store).
type EphemeralStore interface {
	CheckFormat(format string) error
	Create(ctx context.Context, d ephemeral.Disks) error
	Mount(ctx context.Context, instanceID string) (paths []string, err error)
	Unmount(ctx context.Context, instanceID string) error
	Grow(ctx context.Context, instanceID, name string, sizeGB int) error
	Shrink(ctx context.Context, instanceID, name string, sizeGB int) error
	Used(ctx context.Context, instanceID string) (bytes []uint64, err error)
	Delete(ctx context.Context, instanceID string) error
	List(ctx context.Context) ([]string, error)
}

// localDisks is what a server has of the host's disk beside its root disk.
type localDisks struct {
	ephemeral []ephemeral.Disk
	swapMB    int
}

// defaultEphemeralFormat is for disks of which neither the user nor [DEFAULT] default_ephemeral_format says more.
const defaultEphemeralFormat = "ext4"

// blankDisks splits the mappings of local disks without content into ephemeral and swap disks
// (nova/block_device.py:new_format_is_ephemeral, new_format_is_swap).
func blankDisks(bdms []*object.BlockDeviceMapping) (ephemerals, swaps []*object.BlockDeviceMapping) {
	for _, b := range bdms {
		switch {
		case b.SourceType != "blank" || b.DestinationType != "local":
		case b.GuestFormat == "swap":
			swaps = append(swaps, b)
		default:
			ephemerals = append(ephemerals, b)
		}
	}
	return ephemerals, swaps
}

// localDisks reads the disks of a server from its flavor and its mappings, and refuses what cannot be made.
func (m *Manager) localDisks(inst *object.Instance, bdms []*object.BlockDeviceMapping) (localDisks, error) {
	refuse := func(format string, args ...any) (localDisks, error) {
		return localDisks{}, exception.BuildAbort(inst.UUID, fmt.Sprintf(format, args...))
	}
	f := inst.Flavor
	_, swaps := blankDisks(bdms)
	out := localDisks{swapMB: f.Swap}
	if len(swaps) > 1 {
		return refuse("more than one swap disk is asked for")
	}
	if len(swaps) == 1 && swaps[0].VolumeSize != nil {
		// The API refuses more than the flavor's; a resize leaves the mapping as it was (nova-compute before 2023.1).
		out.swapMB = min(*swaps[0].VolumeSize, f.Swap)
	}
	if out.swapMB < 0 {
		return refuse("a swap disk of %d MB is asked for", out.swapMB)
	}
	var err error
	if out.ephemeral, err = m.ephemeralDisks(f, bdms); err != nil {
		return refuse("%v", err)
	}
	for _, d := range out.ephemeral {
		if err := m.Ephemeral.CheckFormat(d.Format); err != nil {
			return refuse("%v", err)
		}
	}
	return out, nil
}

// ephemeralDisks are the ephemeral disks of a flavor. Without a mapping they are one disk, as with every driver of nova's
// (nova/virt/libvirt/blockinfo.py:get_disk_mapping); what the mappings ask for must not exceed the flavor
// (nova/compute/api.py:_validate_bdm).
func (m *Manager) ephemeralDisks(f *object.Flavor, bdms []*object.BlockDeviceMapping) ([]ephemeral.Disk, error) {
	ephemerals, _ := blankDisks(bdms)
	format := cmp.Or(m.opts.DefaultEphemeralFormat, defaultEphemeralFormat)
	if len(ephemerals) == 0 && f.EphemeralGB > 0 {
		return []ephemeral.Disk{{Name: ephemeralName(0), SizeGB: f.EphemeralGB, Format: format}}, nil
	}
	var disks []ephemeral.Disk
	total := 0
	for i, b := range ephemerals {
		size := f.EphemeralGB
		if b.VolumeSize != nil && *b.VolumeSize != 0 {
			size = *b.VolumeSize
		}
		if size <= 0 {
			return nil, fmt.Errorf("an ephemeral disk of %d GB is asked for", size)
		}
		if b.Encrypted {
			return nil, errors.New("encrypted ephemeral disks are not supported by the lxc driver")
		}
		if total += size; total > f.EphemeralGB {
			return nil, fmt.Errorf("ephemeral disks of %d GB exceed the flavor's %d", total, f.EphemeralGB)
		}
		disks = append(disks, ephemeral.Disk{Name: ephemeralName(i), SizeGB: size, Format: cmp.Or(b.GuestFormat, format)})
	}
	return disks, nil
}

// ephemeralName is what the metadata service calls a disk (nova/virt/block_device and nova/objects/block_device.py).
func ephemeralName(i int) string { return fmt.Sprintf("ephemeral%d", i) }

// ephemeralPlace is where a guest sees a disk: the first at /mnt, where cloud-init mounts it in a virtual
// machine and nova-lxd did, the others below.
func ephemeralPlace(i int) string {
	if i == 0 {
		return "mnt"
	}
	return "mnt/" + ephemeralName(i)
}

// makeDisks makes an instance's ephemeral disks and tells where the guest sees them. The record has them already.
func (m *Manager) makeDisks(ctx context.Context, uuid string, ids storage.IDRange, disks []ephemeral.Disk) ([]driver.Bind, error) {
	if len(disks) == 0 {
		return nil, nil
	}
	if err := m.Ephemeral.Create(ctx, ephemeral.Disks{InstanceID: uuid, IDs: ids, Disks: disks}); err != nil {
		return nil, err
	}
	paths, err := m.Ephemeral.Mount(ctx, uuid)
	if err != nil {
		return nil, err
	}
	binds := make([]driver.Bind, 0, len(paths))
	for i, path := range paths {
		binds = append(binds, driver.Bind{Source: path, Target: ephemeralPlace(i)})
	}
	return binds, nil
}

// nameDisks gives every local disk a device name, the root's first, and stores it
// (nova/compute/manager.py:_default_block_device_names, nova/compute/utils.py:default_device_names_for_instance).
// A container has no such devices; users and the metadata service know the disks by these names.
func (m *Manager) nameDisks(ctx context.Context, bdms []*object.BlockDeviceMapping, root string) error {
	rooted := slices.IndexFunc(bdms, func(b *object.BlockDeviceMapping) bool { return b.BootIndex != nil && *b.BootIndex == 0 })
	if rooted < 0 {
		return nil
	}
	prefix, _, ok := splitDevice(root)
	if !ok {
		return fmt.Errorf("root device name %q is not of the form /dev/sda", root)
	}
	if b := bdms[rooted]; b.DeviceName != root {
		if err := m.Conductor.SaveBDM(ctx, b, map[string]any{"device_name": root}); err != nil {
			return err
		}
	}
	used := map[string]bool{}
	for _, b := range bdms {
		if _, letters, ok := splitDevice(b.DeviceName); ok {
			used[letters] = true
		}
	}
	ephemerals, swaps := blankDisks(bdms)
	for _, b := range slices.Concat(ephemerals, swaps) {
		if b.DeviceName != "" {
			continue
		}
		letters := "a"
		for i := 1; used[letters]; i++ {
			letters = deviceLetters(i)
		}
		used[letters] = true
		if err := m.Conductor.SaveBDM(ctx, b, map[string]any{"device_name": prefix + letters}); err != nil {
			return err
		}
	}
	return nil
}

// splitDevice splits /dev/vdb1 into /dev/vd and b (nova/block_device.py:match_device).
func splitDevice(name string) (prefix, letters string, ok bool) {
	base, ok := strings.CutPrefix(strings.TrimRight(name, "0123456789"), "/dev/")
	if !ok {
		return "", "", false
	}
	for _, p := range []string{"xvd", "vd", "sd", "hd"} {
		if letters, ok := strings.CutPrefix(base, p); ok && letters != "" && strings.Trim(letters, "abcdefghijklmnopqrstuvwxyz") == "" {
			return "/dev/" + p, letters, true
		}
	}
	return "", "", false
}

// deviceLetters are a … z, aa, ab … (nova/block_device.py:generate_device_letter).
func deviceLetters(index int) string {
	letters := ""
	for index++; index > 0; index = (index - 1) / 26 {
		letters = string(rune('a'+(index-1)%26)) + letters
	}
	return letters
}

// mountDisks mounts what an instance has on this host before its guest starts, and tells where its root is.
func (m *Manager) mountDisks(ctx context.Context, rec record) (rootfs string, err error) {
	if rootfs, err = m.Roots.Mount(ctx, rec.Root); err != nil {
		return "", fmt.Errorf("mount root disk: %w", err)
	}
	_, err = m.Ephemeral.Mount(ctx, rec.UUID)
	return rootfs, err
}

// unmountDisks unmounts them, and the directories of the host, when the guest is off.
func (m *Manager) unmountDisks(ctx context.Context, uuid string) error {
	return errors.Join(m.Roots.Unmount(ctx, uuid), m.Ephemeral.Unmount(ctx, uuid), m.Shares.Unmount(uuid))
}
