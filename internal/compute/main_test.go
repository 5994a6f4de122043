package compute

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/compute-agent/compute-agent/driver/fake"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/configdrive"
	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/openstack/neutron"
	"github.com/compute-agent/compute-agent/internal/openstack/ostest"
	"github.com/compute-agent/compute-agent/internal/openstack/placement"
	"github.com/compute-agent/compute-agent/internal/openstack/placement/placementtest"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/resource"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ephemeral"
	"github.com/compute-agent/compute-agent/internal/transfer"
	"github.com/compute-agent/compute-agent/rpc"
	"github.com/compute-agent/compute-agent/vif"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testHost = "peer"
	// uuid and imageID are those of the captured build request.
	uuid    = "98069659-53a6-4e31-9f70-ab1e69398588"
	imageID = "36adbebc-e44e-480c-a879-237d84122861"
	// patience is more than anything here takes, on a busy machine with a slow disk too.
	patience = 2 * time.Minute
	// pluggingTimeout is of ports whose event does come.
	pluggingTimeout = 20 * time.Second
)

// world is a manager with everything around it.
type world struct {
	*Manager

	t         testing.TB
	release   release.Release
	opts      Options
	trail     *trail
	nova      *novatest.Conductor
	bus       *bus
	placement *placementtest.Fake
	neutron   *fakeNeutron
	glance    *fakeGlance
	driver    *fake.Driver
	roots     *fakeRoots
	ephemeral *fakeEphemeral
	shares    *fakeShares
	plugger   *fakePlugger
	sender    *fakeSender
	keys      *fakeKeys
	stored    *imagesync.Store
	drives    *configdrive.Store
}

// image is an archive of the smallest root file system.
func image(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []*tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "sbin/init", Mode: 0o755},
	} {
		require.NoError(t, w.WriteHeader(h))
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// newWorld starts a manager on a host of 4 CPUs and 8 GiB.
func newWorld(t testing.TB, change ...func(*Options)) *world {
	t.Helper()
	return newWorldOf(t, "zed", change...)
}

func newWorldOf(t testing.TB, releaseName string, change ...func(*Options)) *world {
	t.Helper()
	return newWorldBeside(t, releaseName, nil, change...)
}

// newWorldBeside is another host of the control plane that a world has; nil: of one of its own.
func newWorldBeside(t testing.TB, releaseName string, other *world, change ...func(*Options)) *world {
	t.Helper()
	r, err := release.ByName(releaseName)
	require.NoError(t, err)
	trail := newTrail()
	w := &world{
		t: t, release: r, trail: trail, nova: novatest.New(), neutron: newFakeNeutron(t, trail), glance: &fakeGlance{trail: trail, data: image(t), images: newFakeImages(trail), status: http.StatusOK},
		placement: placementtest.New("COMPUTE_NODE", "COMPUTE_IMAGE_TYPE_RAW", "COMPUTE_STATUS_DISABLED"),
		driver:    fake.New(), roots: &fakeRoots{trail: trail, dir: t.TempDir(), roots: map[string]storage.Root{}},
		ephemeral: &fakeEphemeral{trail: trail, dir: t.TempDir(), disks: map[string]ephemeral.Disks{}},
		shares:    &fakeShares{trail: trail, dir: t.TempDir(), have: []string{"data", "tools"}},
		plugger:   &fakePlugger{trail: trail, ports: map[string]vif.VIF{}}, sender: &fakeSender{on: true}, keys: &fakeKeys{},
		opts: Options{
			Host: testHost, InstanceNameTemplate: "instance-%08x", OVSBridge: "br-int", HostArch: "x86_64",
			VIFPluggingTimeout: pluggingTimeout, VIFPluggingIsFatal: true, ShutdownTimeout: time.Minute, ShutdownRetryInterval: time.Second,
			RebootTimeout: time.Minute, RunningDeletedAction: "reap", TrackInstanceChanges: true,
			IDPool: []storage.IDRange{{Base: 1_000_000, Size: 10 * 65536}}, IDsPerInstance: 65536, FlavorPolicy: flavor.Policy{DefaultPIDs: 4096},
		},
	}
	for _, f := range change {
		f(&w.opts)
	}
	w.bus = &bus{Conductor: w.nova, hosts: map[string]*world{}}
	if other != nil {
		w.nova, w.neutron, w.glance, w.placement, w.bus = other.nova, other.neutron, other.glance, other.placement, other.bus
	}
	w.bus.hosts[w.opts.Host] = w
	cloud := ostest.NewFake(t, map[string]http.Handler{
		"network": http.StripPrefix("/v2.0", w.neutron), "image": http.StripPrefix("/v2", w.glance), "placement": w.placement,
	})
	db, err := state.Open(filepath.Join(t.TempDir(), "agent.db"))
	require.NoError(t, err)
	images, err := imagesync.Open(imagesync.Options{Dir: filepath.Join(t.TempDir(), "images"), ReserveBytes: 1, Retries: 1})
	require.NoError(t, err)
	drives, err := configdrive.Open(filepath.Join(t.TempDir(), "configdrive"))
	require.NoError(t, err)
	w.stored, w.drives = images, drives
	api := conductor.New(w.bus, r)
	placementClient := placement.New(cloud.Service("placement", "placement", ""))
	w.nova.AddService(novatest.Fields{"id": novatest.Raw(7), "host": novatest.Raw(w.opts.Host), "binary": novatest.Raw(binary), "disabled": novatest.Raw(false)})
	dir := t.TempDir()
	tracker := resource.New(resource.Options{
		Host: w.opts.Host, NodeName: w.opts.Host, StatePath: dir, IdentityDirs: []string{dir}, HypervisorType: "lxc",
		InitialCPURatio: 4, InitialRAMRatio: 1, InitialDiskRatio: 1, CountFailedBuilds: true,
	}, resource.Deps{
		Release: r, Conductor: api, Placement: placementClient, Disk: w.roots.Usage,
		HostInfo: func(context.Context) (hostinfo.Info, error) {
			return hostinfo.Info{CPUs: 4, MemoryMB: 8192, Arch: "x86_64"}, nil
		},
	})
	require.NoError(t, tracker.Start(t.Context(), 7))
	w.nova.ClearLog()
	w.placement.ClearLog()
	w.Manager = New(w.opts, Deps{
		Release: r, Conductor: api, Tracker: tracker, Placement: placementClient,
		Neutron: neutron.New(neutron.Options{Service: cloud.Service("neutron", "network", "v2.0")}),
		Glance: glance.New(glance.Options{Service: cloud.Pool.Service(openstack.ServiceOptions{
			Section: "glance", Types: []string{"image"}, Version: "v2", EndpointOverride: cloud.URL + "/image",
		})}),
		Keys: w.keys, Drives: drives, Shares: w.shares, Driver: w.driver, Roots: w.roots, Ephemeral: w.ephemeral, Images: images, Plugger: w.plugger, DB: db,
		Transfers: transfer.NewServer(transfer.Options{Address: "127.0.0.1"}),
		Notify:    notify.New(w.sender, notify.Options{Host: w.opts.Host, Format: notify.FormatUnversioned, Release: r}),
	})
	w.storePause, w.lostBuildWait = time.Millisecond, time.Millisecond
	t.Cleanup(func() {
		w.drain()
		require.NoError(t, images.Close())
		require.NoError(t, db.Close())
	})
	return w
}

// restarted is a new manager over the same host and control plane, as after a crash of the
// agent: what ran is not waited for, so nothing may run.
func (w *world) restarted() {
	deps := w.Deps
	w.drain()
	w.Manager = New(w.opts, deps)
	w.storePause, w.lostBuildWait = time.Millisecond, time.Millisecond
	w.nova.ClearLog()
	w.placement.ClearLog()
	w.trail.clear()
}

func (w *world) drain() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.t.Context()), patience)
	defer cancel()
	require.NoError(w.t, w.Drain(ctx))
}

// user is the context of a tenant's request.
func user(t testing.TB) context.Context {
	t.Helper()
	return reqctx.With(t.Context(), &reqctx.Request{
		RequestID: "req-1", AuthToken: "user-token", ProjectID: projectID, UserID: "u", Roles: []string{"member", "reader"}, ReadDeleted: "no",
	})
}

// buildArgs are the captured arguments of a build, for the fake image and network. Its
// row is stored, as conductor and scheduler leave it.
func (w *world) buildArgs(change map[string]any) rpc.Args {
	w.t.Helper()
	args := w.capturedBuild()
	for name, value := range change {
		args[name] = novatest.Raw(value)
	}
	w.nova.SetInstance(fieldsOf(w.t, args["instance"]))
	w.placement.Allocate(uuid, w.Tracker.ProviderUUID(), placement.Resources{"VCPU": 1, "MEMORY_MB": 64})
	return args
}

// capturedBuild are the captured arguments of a build, for the fake image and network.
func (w *world) capturedBuild() rpc.Args {
	w.t.Helper()
	args := rpc.Args{}
	for _, m := range capture.Operation(w.t, "zed", "server-create") {
		if m.Method == "build_and_run_instance" {
			maps.Copy(args, m.Args)
		}
	}
	require.NotEmpty(w.t, args)
	for old, replacement := range map[string]string{
		"c33fd595-9a52-45e4-b0b7-cd353f08b77e": networkID, "b6d56acdfcb045799914dccd35bf9037": projectID,
	} {
		for name, raw := range args {
			args[name] = json.RawMessage(strings.ReplaceAll(string(raw), old, replacement))
		}
	}
	sum := sha512.Sum512(w.glance.data)
	var img map[string]any
	require.NoError(w.t, json.Unmarshal(args["image"], &img))
	img["size"], img["os_hash_value"], img["checksum"] = len(w.glance.data), hex.EncodeToString(sum[:]), nil
	args["image"] = novatest.Raw(img)
	args["filter_properties"] = novatest.Raw(map[string]any{"limits": map[string]any{}, "retry": map[string]any{"num_attempts": 1, "hosts": []any{[]string{testHost, testHost}}}})
	args["host_list"] = novatest.Raw([]any{map[string]any{
		"nova_object.name": "Selection", "nova_object.namespace": "nova", "nova_object.version": "1.1", "nova_object.data": map[string]any{"service_host": "other"},
	}})
	return args
}

// fieldsOf are the fields of an object.
func fieldsOf(t testing.TB, raw json.RawMessage) novatest.Fields {
	t.Helper()
	var envelope struct {
		Data novatest.Fields `json:"nova_object.data"`
	}
	require.NoError(t, json.Unmarshal(raw, &envelope))
	return envelope.Data
}

// call runs a method as the RPC server does, and waits for what it leaves in the background.
func (w *world) call(ctx context.Context, method string, args rpc.Args) (any, error) {
	w.t.Helper()
	result, err := w.handler(method)(ctx, args)
	w.drain()
	return result, err
}

func (w *world) handler(method string) rpc.Handler {
	w.t.Helper()
	h := w.Endpoints()[0].Methods[method]
	require.NotNil(w.t, h, method)
	return h
}

// build builds the captured server; events of its ports come as soon as they are plugged.
func (w *world) build(change map[string]any) {
	w.t.Helper()
	w.plugEvents("completed")
	_, err := w.call(user(w.t), "build_and_run_instance", w.buildArgs(change))
	require.NoError(w.t, err)
}

// built is a world with the captured server running.
func built(t testing.TB, change ...func(*Options)) *world {
	t.Helper()
	return builtWith(t, nil, nil, change...)
}

// builtWith is built for a server with changes to its flavor, and block device mappings.
func builtWith(t testing.TB, flavor map[string]any, bdms []any, change ...func(*Options)) *world {
	t.Helper()
	w := newWorld(t, change...)
	var request map[string]any
	if bdms != nil {
		mappings := map[string]any{
			"nova_object.name": "BlockDeviceMappingList", "nova_object.namespace": "nova", "nova_object.version": "1.18", "nova_object.data": map[string]any{"objects": bdms},
		}
		request = map[string]any{"block_device_mapping": mappings}
		w.nova.SetBDMs(bdms)
	}
	args := w.buildArgs(request)
	w.flavor(args, flavor)
	w.plugEvents("completed")
	_, err := w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	w.nova.ClearLog()
	w.placement.ClearLog()
	w.trail.clear()
	w.sender.clear()
	return w
}

// plugEvents has Neutron report every port when the conductor hears of it.
func (w *world) plugEvents(status string) {
	w.nova.On("VirtualInterface.create", func() {
		waiting := w.waiters.Keys()
		for _, key := range waiting {
			w.event(key.Name, key.Tag, status)
		}
	})
}

// event delivers an external event about the captured server.
func (w *world) event(name, tag, status string) {
	w.t.Helper()
	_, err := w.handler("external_instance_event")(w.t.Context(), w.eventArgs(name, tag, status))
	require.NoError(w.t, err)
}

func (w *world) eventArgs(name, tag, status string) rpc.Args {
	return rpc.Args{
		"instances": novatest.Raw([]any{w.nova.Instance(uuid, "info_cache")}),
		"events": novatest.Raw([]any{map[string]any{
			"nova_object.name": "InstanceExternalEvent", "nova_object.namespace": "nova", "nova_object.version": "1.5",
			"nova_object.data": map[string]any{"instance_uuid": uuid, "name": name, "status": status, "tag": tag},
		}}),
	}
}

// instance reads the captured server's row as the API does.
func (w *world) instance(attrs ...string) *object.Instance {
	w.t.Helper()
	inst := &object.Instance{}
	require.NoError(w.t, json.Unmarshal(w.nova.Instance(uuid, attrs...), inst))
	return inst
}

// operate does what the API does for an operation: it sets the task state and calls the method.
func (w *world) operate(method, task string, more map[string]any) (any, error) {
	w.t.Helper()
	if task != "" {
		w.nova.Update(uuid, map[string]any{"task_state": task})
	}
	args := rpc.Args{"instance": w.nova.Instance(uuid, "metadata", "system_metadata", "info_cache")}
	for name, value := range more {
		args[name] = novatest.Raw(value)
	}
	return w.call(user(w.t), method, args)
}

// nothingLeft requires that the host and the services hold nothing of the server.
func (w *world) nothingLeft() {
	w.t.Helper()
	local, err := w.localInstances(w.t.Context())
	require.NoError(w.t, err)
	require.Empty(w.t, local, "records, guests or root disks")
	require.Empty(w.t, w.plugger.plugged())
	ranges, err := w.DB.Ranges()
	require.NoError(w.t, err)
	require.Empty(w.t, ranges)
	for _, img := range w.images() {
		require.Empty(w.t, img.Instances, "references to images")
	}
	require.Empty(w.t, w.Tracker.Instances())
	require.Zero(w.t, w.nova.VIFs(uuid))
	w.noJournal()
	require.Empty(w.t, w.waiters.Keys())
}

func (w *world) noJournal() {
	w.t.Helper()
	require.Empty(w.t, w.entries())
	require.False(w.t, w.journal.Has(uuid))
}

func (w *world) images() []imagesync.Image {
	w.t.Helper()
	all, err := w.Images.List(w.t.Context())
	require.NoError(w.t, err)
	return all
}

// eventually waits for what another goroutine does.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	require.Eventually(t, is, patience, time.Millisecond, what)
}

// plugEventsOnSave has Neutron report the ports that somebody waits for when the conductor hears of the compute
// node's usage, or of the info cache: a server that comes back has its rows already. It does so until the returned function is called.
func (w *world) plugEventsOnSave() (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var reporting sync.WaitGroup
	w.nova.On("InstanceInfoCache.save", func() {
		reporting.Go(func() {
			for ctx.Err() == nil {
				waiting := w.waiters.Keys()
				for _, key := range waiting {
					w.waiters.Deliver(uuid, key.Name, key.Tag, "completed")
				}
				if len(waiting) > 0 {
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	})
	return func() {
		w.nova.On("InstanceInfoCache.save", nil)
		cancel()
		reporting.Wait()
	}
}
