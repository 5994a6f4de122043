package compute

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/compute/glanceimage"
	"github.com/compute-agent/compute-agent/internal/compute/metadata"
	"github.com/compute-agent/compute-agent/internal/compute/plugging"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/neutron"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/vif"
)

// spawn is the host's side of one build: the network and the root disk, prepared
// side by side, and the start of the guest on top of them.
type spawn struct {
	m    *Manager
	r    *buildRequest
	inst *object.Instance

	ports *plugging.Ports

	mu    sync.Mutex // guards rec and links
	rec   record
	links map[string]vif.Link // by port id

	limits flavor.Limits   // set by fetchImage
	pool   string          // of the root disk, set by choosePool
	image  imagesync.Image // set by fetchImage
	rootfs string          // where the root disk is mounted, set by makeRoot

	alloc *neutron.Allocation // nil: no network asked for
	info  object.NetworkInfo

	devices []*object.Generic // with tags
	order   []string          // port ids as the guest has them: eth0 is the first
}

func newSpawn(m *Manager, r *buildRequest) *spawn {
	s := &spawn{
		m: m, r: r, inst: r.Instance, ports: m.ports(r.Instance.UUID), links: map[string]vif.Link{},
		rec: record{UUID: r.Instance.UUID, Name: r.Instance.Name(m.opts.InstanceNameTemplate), ImageID: r.Image.ID, Created: time.Now().UTC(), Bandwidth: m.bandwidth(r.Instance)},
	}
	s.rec.describe(r.Instance)
	return s
}

// prepareNetwork allocates the ports and plugs each as soon as it is bound, so that
// Neutron's agent wires it while the rest is still under way. It returns when the
// info cache is stored and the ports are up, or need not be waited for.
func (s *spawn) prepareNetwork(ctx context.Context) error {
	if !requestsNetwork(s.r.RequestedNetworks) {
		return nil
	}
	req := s.m.allocateRequest(s.inst, s.r)
	req.AttachExternal = reqctx.From(ctx).IsAdmin
	req.OnBound = s.plug
	alloc, err := s.m.Neutron.AllocateForInstance(ctx, req)
	if err != nil {
		return s.networkFailure(err)
	}
	s.alloc = alloc
	for i := range alloc.Ports {
		s.order = append(s.order, alloc.Ports[i].ID)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.m.await(gctx, s.ports.Wait) })
	g.Go(func() error { return s.storeNetworkInfo(gctx) })
	return g.Wait()
}

// hostNetworkClasses are failures of the network that another host may not have
// (nova/compute/manager.py:_build_and_run_instance reschedules them).
var hostNetworkClasses = []string{
	"PortBindingFailed", "VirtualInterfacePlugException", "VirtualInterfaceCreateException", "NeutronAdminCredentialConfigurationInvalid",
}

// networkFailure is what a failed allocation does to a build: a request that Neutron
// refuses ends it with the cause, for another host could do no better; what this host
// cannot bind, plug or reach is left to another.
func (s *spawn) networkFailure(err error) error {
	err = networkError(s.inst, err)
	if class, ok := exception.ClassOf(err); !ok || slices.Contains(hostNetworkClasses, class) {
		return err
	}
	return abortBecause(s.inst.UUID, err)
}

// plug wires one port that was just bound.
func (s *spawn) plug(ctx context.Context, p neutron.AllocatedPort) error {
	return s.plugVIF(ctx, s.m.vifOfPort(s.inst.UUID, &p), p.Index, p.Active())
}

// plugVIF wires one port, the guest's interface of that index.
func (s *spawn) plugVIF(ctx context.Context, v vif.VIF, index int, active bool) error {
	if v.VNICType != "" && v.VNICType != "normal" {
		return fmt.Errorf("%w: vnic_type %s", vif.ErrUnsupported, v.VNICType)
	}
	if !active {
		s.ports.Expect(v.PortID)
	}
	s.mu.Lock()
	s.rec.shape(&v)
	s.rec.VIFs = append(s.rec.VIFs, v)
	if s.rec.Names == nil {
		s.rec.Names = map[string]string{}
	}
	s.rec.Names[v.PortID] = "eth" + strconv.Itoa(index) // the ports are bound in any order
	err := s.m.saveRecord(s.rec)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	link, err := s.ports.Plug(ctx, v)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links[v.PortID] = link
	return nil
}

// storeNetworkInfo records the ports with the control plane: a VirtualInterface row
// each, in the order of the guest's interfaces, and the info cache.
func (s *spawn) storeNetworkInfo(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for i := range s.alloc.Ports {
			p := &s.alloc.Ports[i]
			if err := s.m.Conductor.CreateVIF(gctx, p.ID, p.MACAddress, s.inst.UUID, tagOf(p.Tag)); err != nil {
				return err
			}
		}
		return nil
	})
	g.Go(func() error {
		vifs, err := s.m.Neutron.NetworkInfo(gctx, neutron.InfoRequest{
			InstanceUUID: s.inst.UUID, ProjectID: s.inst.ProjectID, Allocation: s.alloc,
		})
		if err != nil {
			return s.networkFailure(err)
		}
		info, err := s.m.networkInfo(vifs)
		if err != nil {
			return err
		}
		s.info = info // the instance itself is read by others now: finishBuild gives it the list
		return s.m.Conductor.SaveInfoCache(gctx, s.inst.UUID, info)
	})
	return g.Wait()
}

// prepareRoot brings the image into the store, makes the root disk and the
// container's configuration.
func (s *spawn) prepareRoot(ctx context.Context) error {
	if err := s.m.checkShares(s.inst.UUID, s.inst.Flavor); err != nil {
		return err
	}
	defer s.m.Images.Hold(s.r.Image.ID)() // until it is acquired
	if err := s.choosePool(); err != nil {
		return err
	}
	if err := s.fetchImage(ctx); err != nil {
		return err
	}
	return s.makeRoot(ctx)
}

// fetchImage finds out what the root disk is to be and brings its image into the store. It changes
// nothing of the instance. The caller holds the image.
func (s *spawn) fetchImage(ctx context.Context) (err error) {
	if s.limits, err = s.m.limits(ctx, s.inst); err != nil {
		return err
	}
	if err := s.m.checkImage(s.inst, &s.r.Image); err != nil {
		return err
	}
	// What Glance knows of its requirements need not wait until it is fetched.
	if err := s.checkRequirements(imagesync.Metadata{}); err != nil {
		return err
	}
	if s.image, err = s.m.syncImage(ctx, &s.r.Image, s.m.trust(s.inst.TrustedCerts)); err != nil {
		return err
	}
	if err := s.checkRequirements(s.image.Metadata); err != nil {
		return err
	}
	return glanceimage.CheckInit(s.r.Image.ID, s.image.Path, s.m.opts.Cgroups)
}

func (s *spawn) checkRequirements(metadata imagesync.Metadata) error {
	r := glanceimage.Requirements{ImageID: s.r.Image.ID, Property: s.r.Image.Property, Metadata: metadata}
	return r.Check(s.inst.Flavor, s.limits, s.m.opts.Cgroups)
}

// makeRoot makes the root disk of the image that was fetched, and the container's configuration.
func (s *spawn) makeRoot(ctx context.Context) error {
	image, limits := s.image, s.limits
	ids, err := s.m.DB.AllocateRange(s.inst.UUID, s.m.opts.IDPool, s.m.opts.IDsPerInstance)
	if err != nil {
		return fmt.Errorf("%w: %w", driver.ErrNoResources, err)
	}
	root := storage.Root{InstanceID: s.inst.UUID, ImagePath: image.Path, SizeGB: limits.RootGB, IDs: ids, Nested: limits.Nested, Pool: s.pool}
	disks, err := s.m.localDisks(s.inst, s.r.BDMs)
	if err != nil {
		return err
	}
	limits.SwapBytes = int64(disks.swapMB) << 20
	shares, err := sharesOf(s.inst.UUID, s.inst.Flavor)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.rec.ImageID, s.rec.Arch, s.rec.Root, s.rec.Ephemeral = s.r.Image.ID, image.Metadata.Arch(), root, disks.ephemeral
	s.rec.Shares = shares
	rec := s.rec // the ports are plugged meanwhile
	err = s.m.saveRecord(rec)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := s.m.Images.Acquire(s.r.Image.ID, s.inst.UUID); err != nil {
		return err
	}
	if err := s.m.Roots.Create(ctx, root); err != nil {
		return fmt.Errorf("create root disk: %w", err)
	}
	rootfs, err := s.m.Roots.Mount(ctx, root)
	if err != nil {
		return fmt.Errorf("mount root disk: %w", err)
	}
	binds, err := s.m.makeDisks(ctx, s.inst.UUID, ids, disks.ephemeral)
	if err != nil {
		return err
	}
	s.rootfs = rootfs
	binds = append(s.m.driveBinds(s.inst, s.r.Image.Property(metadata.ImageConfigDrive)), binds...)
	return s.m.Driver.Create(ctx, s.m.specOf(s.inst, rec, limits, binds), rootfs)
}

// specOf describes an instance of this host to the driver. binds are beside its shares.
func (m *Manager) specOf(inst *object.Instance, rec record, limits flavor.Limits, binds []driver.Bind) driver.Spec {
	return driver.Spec{
		UUID: inst.UUID, Name: rec.Name, Hostname: inst.Hostname, ImageID: rec.ImageID, Arch: rec.Arch,
		Limits: limits, IDs: rec.Root.IDs, Binds: append(binds, m.shareBinds(rec)...), ShutdownTimeout: m.shutdownTimeout(inst),
		// ds-identify of cloud-init recognises the platform by this word.
		Env: map[string]string{"product_name": "OpenStack Nova"},
	}
}

// tellDevices stores what the metadata service is to say of the server's devices, before the
// guest can ask. Most servers have nothing to tell, and nothing is stored.
func (s *spawn) tellDevices(ctx context.Context) error {
	tags := map[string]string{}
	if s.alloc != nil {
		for i := range s.alloc.Ports {
			tags[s.alloc.Ports[i].ID] = s.alloc.Ports[i].Tag
		}
	}
	devices, err := metadata.DescribeDevices(s.m.Release, s.info, tags, s.r.BDMs)
	if err != nil || devices == nil {
		return err
	}
	if s.devices, err = metadata.UnpackDevices(devices); err != nil {
		return err
	}
	return s.m.Conductor.SaveInstance(ctx, s.inst, map[string]any{"device_metadata": devices})
}

// writeConfigDrive makes the server's config drive, if it has one, of what the request and the
// instance say of it. The root disk is there, and with it the guest's ids.
func (s *spawn) writeConfigDrive(ctx context.Context) error {
	if !s.m.opts.ConfigDrive.Wanted(s.inst, s.r.Image.Property(metadata.ImageConfigDrive)) {
		return nil
	}
	content := metadata.Content{
		Files: s.r.InjectedFiles, SecurityGroups: s.r.SecurityGroups, BDMs: s.r.BDMs, Info: s.info, Devices: s.devices,
	}
	if s.alloc == nil { // a server that had its ports before
		content.Info = s.inst.NetworkInfo()
		var err error
		if content.Devices, err = s.m.devices(ctx, s.inst); err != nil {
			return err
		}
	}
	if s.r.AdminPassword != nil {
		content.Password = *s.r.AdminPassword
	}
	if err := s.m.writeConfigDrive(ctx, s.inst, s.rec.Root.IDs.Base, content); err != nil {
		return fmt.Errorf("make config drive: %w", err)
	}
	return nil
}

// furnish writes what makes a new root disk this server's: the files of its image's templates and, into the disk or the config drive, what
// the request says of it.
func (s *spawn) furnish(ctx context.Context) error {
	if err := s.applyTemplates(ctx); err != nil {
		return err
	}
	if err := s.inject(ctx); err != nil {
		return err
	}
	return s.writeConfigDrive(ctx)
}

// start runs the guest with its ports in request order, once its root disk is furnished.
func (s *spawn) start(ctx context.Context) error {
	if err := s.furnish(ctx); err != nil {
		return err
	}
	if err := s.m.Drives.Mount(s.inst.UUID); err != nil {
		return err
	}
	if err := s.m.mountShares(s.rec); err != nil {
		return err
	}
	var nics []driver.NIC
	for _, id := range s.order {
		nics = append(nics, driver.NIC{PortID: id, Name: s.rec.Names[id], Link: s.links[id]})
	}
	return s.m.Driver.Start(ctx, s.inst.UUID, nics)
}

// abandon leaves the host as it was before the build, also when ctx has ended.
func (s *spawn) abandon(ctx context.Context) error {
	s.ports.Cancel()
	ctx = context.WithoutCancel(ctx)
	err := s.m.removeFromHost(ctx, s.inst.UUID)
	if err != nil {
		reqctx.Log(ctx).WithError(err).Error("failed build not removed from the host; cleanup_running_deleted_instances tries again")
	}
	return err
}

// limits translates the instance's flavor.
func (m *Manager) limits(ctx context.Context, inst *object.Instance) (flavor.Limits, error) {
	f := inst.Flavor
	limits, warnings, err := flavor.FromSpecs(flavor.Flavor{
		Name: f.Name, VCPUs: f.VCPUs, MemoryMB: f.MemoryMB, RootGB: f.RootGB,
		EphemeralGB: f.EphemeralGB, SwapMB: f.Swap, ExtraSpecs: f.ExtraSpecs,
	}, m.opts.FlavorPolicy)
	if err != nil {
		return limits, abortBecause(inst.UUID, err)
	}
	if limits.RootGB == 0 {
		limits.RootGB = m.opts.RootDiskDefaultGB
	}
	if m.opts.RootDiskMaxGB > 0 && limits.RootGB > m.opts.RootDiskMaxGB {
		return limits, exception.ComputeResourcesUnavailable(fmt.Sprintf(
			"a root disk of %d GB exceeds this host's [lxc] root_disk_max_gb of %d", limits.RootGB, m.opts.RootDiskMaxGB))
	}
	for _, w := range warnings {
		reqctx.Log(ctx).WithField("flavor", f.Name).Warning(w.String())
	}
	return limits, nil
}

// checkImage applies the limits that an image sets to flavors (nova/compute/api.py does so
// too, but a rebuild or a stale request may come with others).
func (m *Manager) checkImage(inst *object.Instance, image *object.Image) error {
	if image.ID == "" {
		return exception.BuildAbort(inst.UUID, "boot from volume is not supported by the lxc driver")
	}
	if image.MinRAM > inst.Flavor.MemoryMB {
		return exception.FlavorMemoryTooSmall()
	}
	if inst.Flavor.RootGB > 0 && image.MinDisk > inst.Flavor.RootGB {
		return exception.FlavorDiskTooSmall()
	}
	return nil
}

// syncImage brings the image into the local store. It is an error if it cannot prove what trust wants.
func (m *Manager) syncImage(ctx context.Context, image *object.Image, trust *glanceimage.Trust) (imagesync.Image, error) {
	req := glanceimage.Request(m.Glance, image, m.opts.HostArch)
	if other := image.Property(glanceimage.MetadataProperty); other != "" {
		part, err := m.metadataImage(ctx, other)
		if err != nil {
			return imagesync.Image{}, err
		}
		req.MetadataImage = part
	}
	var synced imagesync.Image
	err := m.await(ctx, func(ctx context.Context) (err error) {
		synced, err = m.syncProven(ctx, req, trust)
		return err
	})
	return synced, err
}
