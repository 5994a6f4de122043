package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/driver/fake"
	"github.com/compute-agent/compute-agent/driver/lxc"
	"github.com/compute-agent/compute-agent/internal/compute"
	"github.com/compute-agent/compute-agent/internal/compute/inject"
	"github.com/compute-agent/compute-agent/internal/compute/nowhere"
	"github.com/compute-agent/compute-agent/internal/control"
	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/resource"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// This file is the host of [DEFAULT] compute_driver = fake.FakeDriver, on which nothing is started. Of the machine it uses
// the state directory alone.

// errFake refuses commands about guests and images of a host that has none.
var errFake = errors.New("[DEFAULT] compute_driver names a fake driver: no server runs on this host, and there are no images")

// fakeIDs are user ids for guests that need none: they are reserved in the agent's own books only.
var fakeIDs = []storage.IDRange{{Base: 1 << 16, Size: 1<<32 - 1<<17}}

func (h *host) openFake(ctx context.Context, c *config.Config, as config.FakeHost) (err error) {
	h.fake, h.pool = &as, fakeIDs
	h.measure = func(ctx context.Context) (hostinfo.Info, error) {
		info, err := hostinfo.Read(ctx)
		return pretend(info, as), err
	}
	if h.info, err = h.measure(ctx); err != nil {
		return err
	}
	tree := filepath.Join(c.LXC.StateDir, "empty-image")
	if err := os.MkdirAll(tree, 0o755); err != nil { //nolint:gosec // it is a root file system's root
		return err
	}
	h.driver = fake.New() // says whose state it is
	if err := h.openState(c); err != nil {
		return err
	}
	if h.driver, err = fake.Open(h.db); err != nil {
		return err
	}
	size := uint64(as.DiskGB) << 30 //nolint:gosec // positive
	h.roots, h.disks, h.drives = nowhere.Roots{Tree: tree, Size: storage.Usage{Total: size, Free: size}}, nowhere.Disks{}, nowhere.Drives{}
	h.images, h.control, h.plugger = nowhere.Images{Tree: tree}, noImages{}, nowhere.Plugger{}
	h.shares = nowhere.Shares{}
	reqctx.Log(ctx).WithField("compute_driver", as.Driver).Warning("this is a fake compute host: its servers are books without guests, and their ports are not plugged")
	return nil
}

// pretend gives a host the figures of a fake driver.
func pretend(info hostinfo.Info, as config.FakeHost) hostinfo.Info {
	info.CPUs, info.MemoryMB, info.OnlineCPUs, info.Cgroups = as.VCPUs, as.MemoryMB, nil, hostinfo.CgroupNone
	info.CPU = hostinfo.CPU{Arch: info.Arch, Model: "fake", Vendor: "fake", Topology: hostinfo.Topology{Cells: 1, Sockets: 1, Cores: as.VCPUs, Threads: 1}}
	return info
}

// trackerOptions are those of this host's kind.
func (h *host) trackerOptions(o resource.Options) resource.Options {
	if h.fake != nil {
		o.CPUs, o.Guests = 0, []resource.GuestKind{{HVType: "fake", VMMode: "hvm"}}
	}
	return o
}

// managerOptions are those of this host's kind: nobody wires a port that is not plugged (nova's fake driver waits for none), and an image that is
// not fetched proves nothing and becomes no disk to write into.
func (h *host) managerOptions(o compute.Options) compute.Options {
	if h.fake != nil {
		o.VIFPluggingTimeout, o.VerifySignatures, o.ValidateCertificate, o.Injection = 0, false, false, inject.Settings{}
	}
	return o
}

// openGuests opens the containers for a command of their own.
func openGuests(c *config.Config) (driver.Driver, error) {
	if _, fake := c.Default.FakeHost(); fake {
		return nil, errFake
	}
	return lxc.New(driverOptions(c))
}

// noImages is the image store of a host that fetches none.
type noImages struct{}

var _ control.Images = noImages{}

// List implements control.Images.
func (noImages) List(context.Context) (control.Listing, error) { return control.Listing{}, errFake }

// Import implements control.Images.
func (noImages) Import(context.Context, control.ImportOptions, func(control.Progress)) (control.Imported, error) {
	return control.Imported{}, errFake
}

// Remove implements control.Images.
func (noImages) Remove(context.Context, string) error { return errFake }

// Prune implements control.Images.
func (noImages) Prune(context.Context, control.PruneOptions) ([]control.Pruned, error) {
	return nil, errFake
}

// Hold implements control.Images.
func (noImages) Hold(context.Context, string) (*control.Held, error) { return nil, errFake }

// Close implements control.Images.
func (noImages) Close() error { return nil }
