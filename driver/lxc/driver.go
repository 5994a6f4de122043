package lxc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	lxc "github.com/lxc/go-lxc"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// hypervisorType is what the driver calls itself in ComputeNode.hypervisor_type.
const hypervisorType = "lxc"

// Values of Options.AppArmor and Options.LXCFS.
const (
	ModeAuto       = "auto"       // use it if the host has it
	ModeOn         = "on"         // LXCFS: required
	ModeOff        = "off"        // LXCFS: never
	ModeGenerated  = "generated"  // AppArmor: a profile per instance, made by liblxc
	ModeUnconfined = "unconfined" // AppArmor: none
)

// Options are the host's choices. Paths are absolute and must not change while
// guests run: the monitor's command socket is named after LXCPath.
type Options struct {
	StateDir string // records of instances
	LXCPath  string // liblxc's own directory; default StateDir/lxc
	LogDir   string // logs and console files

	// ConsoleSize bounds the console output kept per instance, in bytes; 0: 1 MiB.
	// The monitor keeps two files, of a power of two each, that stay within it together.
	ConsoleSize int64
	// AppArmor is ModeAuto (default), ModeGenerated, ModeUnconfined or the name of a loaded profile.
	AppArmor string
	// SeccompProfile is a policy file in liblxc's format; empty: a deny list of our own.
	SeccompProfile string
	// LXCFS is ModeAuto (default), ModeOn or ModeOff.
	LXCFS string
	// LXCFSMount is where lxcfs is mounted; default /var/lib/lxcfs.
	LXCFSMount string
	// AllowPrivileged lets flavors ask for containers without a user namespace.
	AllowPrivileged bool
	// IDPool are the host ids that instances may get; Check verifies that root may map them.
	IDPool []storage.IDRange
	// Disks tells which block devices the disks of an instance are on, for their limits; nil: the root file system's.
	Disks func(ctx context.Context, uuid string) ([]storage.Device, error)
	// Executable is re-executed for the hidden sub-commands; default /proc/self/exe,
	// which stays this very program when the file on disk is replaced by an upgrade.
	Executable string
}

// Driver implements driver.Driver by liblxc.
type Driver struct {
	o       Options
	cgroups cgroups
	version libVersion

	lxcfsServer lxcfsServer

	createMu sync.Mutex // makes "is the name free" and "record it" one step

	mu   sync.Mutex        // guards subs
	subs map[*watcher]bool // one per Events call
}

var _ driver.Driver = (*Driver)(nil)

// New prepares the directories and looks at the host's cgroups. It fails on a host
// where guests could not be limited or frozen (liblxc 7 with cgroup v1); what else
// may be wrong with the host tells Check. It starts no goroutine.
func New(o Options) (*Driver, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	cg, err := readCgroups()
	if err != nil {
		return nil, fmt.Errorf("read cgroup layout: %w", err)
	}
	v, err := parseVersion(lxc.Version())
	if err != nil {
		return nil, err
	}
	if err := supportedLayout(v, cg.layout); err != nil {
		return nil, err
	}
	if err := o.makeDirectories(); err != nil {
		return nil, err
	}
	d := &Driver{o: o, cgroups: cg, version: v, subs: make(map[*watcher]bool), lxcfsServer: lxcfsServer{mount: o.LXCFSMount, limit: lxcfsTimeout}}
	if err := d.writeSeccompProfile(); err != nil {
		return nil, err
	}
	return d, nil
}

// makeDirectories makes the directories in the order in which one may hold the other: a
// guest's root has to pass through StateDir and LXCPath, whatever the umask, and nobody
// through the logs.
func (o *Options) makeDirectories() error {
	for _, dir := range []string{o.StateDir, o.LXCPath} {
		if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // see above
			return fmt.Errorf("make directory: %w", err)
		}
		st, err := os.Stat(dir)
		if err == nil && st.Mode().Perm()&0o001 == 0 {
			err = os.Chmod(dir, st.Mode().Perm()|0o111)
		}
		if err != nil {
			return fmt.Errorf("open directory to guests: %w", err)
		}
	}
	if err := os.MkdirAll(o.LogDir, 0o750); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

func (o *Options) complete() error {
	if o.LXCPath == "" && o.StateDir != "" {
		o.LXCPath = filepath.Join(o.StateDir, "lxc")
	}
	for name, dir := range map[string]string{"StateDir": o.StateDir, "LXCPath": o.LXCPath, "LogDir": o.LogDir} {
		if !plainPath(dir) {
			return fmt.Errorf("option %s: %q is not an absolute, clean path without blanks", name, dir)
		}
	}
	if o.SeccompProfile != "" && !plainPath(o.SeccompProfile) {
		return fmt.Errorf("option SeccompProfile: %q is not an absolute, clean path without blanks", o.SeccompProfile)
	}
	if strings.ContainsAny(o.AppArmor, " \t\n\r") {
		return fmt.Errorf("option AppArmor: %q is no name of a profile", o.AppArmor)
	}
	if o.AppArmor == "" {
		o.AppArmor = ModeAuto
	}
	switch o.LXCFS {
	case "":
		o.LXCFS = ModeAuto
	case ModeAuto, ModeOn, ModeOff:
	default:
		return fmt.Errorf("option LXCFS: %q is not one of %s, %s, %s", o.LXCFS, ModeAuto, ModeOn, ModeOff)
	}
	if o.LXCFSMount == "" {
		o.LXCFSMount = defaultLXCFSMount
	}
	if !plainPath(o.LXCFSMount) {
		return fmt.Errorf("option LXCFSMount: %q is not an absolute, clean path without blanks", o.LXCFSMount)
	}
	if o.ConsoleSize == 0 {
		o.ConsoleSize = 1 << 20
	}
	if o.Executable == "" {
		o.Executable = "/proc/self/exe"
	}
	return nil
}

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, spec driver.Spec, rootfs string) error {
	if err := d.validate(spec, rootfs); err != nil {
		return fmt.Errorf("create instance %s: %w", spec.UUID, err)
	}
	rec := record{Spec: spec, RootFS: rootfs}
	// The record goes first: a directory without a record of its name is a foreign container's.
	if err := d.reserve(ctx, rec); err != nil {
		return err
	}
	for dir, mode := range map[string]os.FileMode{d.containerDir(spec.Name): 0o711, d.logDir(spec.Name): 0o750} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	return d.writeConfig(ctx, rec, nil, nil)
}

// reserve records an instance if its name is free.
func (d *Driver) reserve(ctx context.Context, rec record) error {
	d.createMu.Lock()
	defer d.createMu.Unlock()
	if err := d.nameFree(ctx, rec.Spec); err != nil {
		return fmt.Errorf("create instance %s: %w", rec.Spec.UUID, err)
	}
	return d.save(rec)
}

// nameFree reports ErrExists if the name belongs to another instance or to a container that is not ours.
func (d *Driver) nameFree(ctx context.Context, spec driver.Spec) error {
	records, err := d.records(ctx)
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.Spec.UUID == spec.UUID && r.Spec.Name != spec.Name {
			return fmt.Errorf("it is recorded as %s: %w", r.Spec.Name, driver.ErrExists)
		}
		if r.Spec.UUID != spec.UUID && r.Spec.Name == spec.Name {
			return fmt.Errorf("name %s belongs to %s: %w", spec.Name, r.Spec.UUID, driver.ErrExists)
		}
		if r.Spec.UUID == spec.UUID {
			return nil
		}
	}
	if _, err := os.Lstat(d.containerDir(spec.Name)); err == nil {
		return fmt.Errorf("%s is a container of someone else: %w", d.containerDir(spec.Name), driver.ErrExists)
	}
	return nil
}

// Destroy implements driver.Driver.
func (d *Driver) Destroy(ctx context.Context, uuid string) error {
	rec, err := d.load(uuid)
	if errors.Is(err, driver.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.Stop(ctx, uuid, 0, 0); err != nil {
		return err
	}
	for _, dir := range []string{d.containerDir(rec.Spec.Name), d.logDir(rec.Spec.Name)} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("destroy instance %s: %w", uuid, err)
		}
	}
	return errors.Join(d.endSuspension(uuid), d.forgetProfile(rec.Spec.Name), d.remove(uuid))
}

// Info implements driver.Driver.
func (d *Driver) Info(ctx context.Context, uuid string) (driver.Info, error) {
	rec, err := d.load(uuid)
	if err != nil {
		return driver.Info{}, err
	}
	g, err := d.settled(ctx, rec.Spec.Name)
	if err != nil && !errors.Is(err, driver.ErrExists) { // someone else's container of that name
		return driver.Info{}, err
	}
	if !g.running() {
		return driver.Info{PowerState: driver.PowerStateShutdown, Rebooting: d.wantsReboot(rec)}, nil
	}
	if g.init == 0 {
		return driver.Info{PowerState: driver.PowerStateNoState}, nil
	}
	info := driver.Info{PowerState: driver.PowerStateRunning, InitPID: g.init}
	if d.cgroups.frozen(payload(rec.Spec.Name)) {
		info.PowerState = driver.PowerStatePaused
		if d.suspended(uuid, g.init) {
			info.PowerState = driver.PowerStateSuspended
		}
	}
	if t, err := startedAt(g.init); err == nil {
		info.StartedAt = t
	}
	return info, nil
}

// settleTime is how long a guest may be without an init because it reboots itself.
const (
	settleTime = 2 * time.Second
	settleStep = 2 * time.Millisecond
)

// settled looks at a guest and, while its monitor has no init (it starts or reboots
// inside), looks again for a moment.
func (d *Driver) settled(ctx context.Context, name string) (guest, error) {
	deadline := time.Now().Add(settleTime)
	for {
		g, err := d.lookup(name)
		if err != nil || !g.running() || g.init != 0 || time.Now().After(deadline) {
			return g, err
		}
		if err := pause(ctx, settleStep); err != nil {
			return g, err
		}
	}
}

// runs gives an instance whose guest runs; doing says what for.
func (d *Driver) runs(ctx context.Context, uuid, doing string) (record, guest, error) {
	rec, err := d.load(uuid)
	if err != nil {
		return record{}, guest{}, err
	}
	g, err := d.settled(ctx, rec.Spec.Name)
	if err != nil {
		return record{}, guest{}, err
	}
	if !g.running() || g.init == 0 {
		return record{}, guest{}, fmt.Errorf("%s instance %s: %w", doing, uuid, driver.ErrNotRunning)
	}
	return rec, g, nil
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) ([]driver.Spec, error) {
	records, err := d.records(ctx)
	if err != nil {
		return nil, err
	}
	specs := make([]driver.Spec, 0, len(records))
	for _, r := range records {
		specs = append(specs, r.Spec)
	}
	return specs, nil
}

// Version implements driver.Driver: "lxc" and liblxc's version as Nova writes
// hypervisor versions, 5.0.2 being 5000002.
func (d *Driver) Version() (name string, version int) {
	return hypervisorType, d.version.number()
}

// pause sleeps and returns ctx's error if it ends before.
func pause(ctx context.Context, t time.Duration) error {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
