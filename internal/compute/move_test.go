package compute

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/openstack/placement"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/rpc"
)

// bus is the conductor, and the other agents.
type bus struct {
	*novatest.Conductor
	hosts map[string]*world
	asked []rpc.Args // of agents
}

// Call implements conductor.RPC.
func (b *bus) Call(ctx context.Context, t rpc.Target, method string, args map[string]any) (json.RawMessage, error) {
	if t.Namespace != conductor.AgentNamespace {
		return b.Conductor.Call(ctx, t, method, args)
	}
	w := b.hosts[t.Server]
	if w == nil {
		return nil, rpc.ErrTimeout
	}
	in := rpc.Args{}
	for name, value := range args {
		in[name] = novatest.Raw(value)
	}
	b.asked = append(b.asked, in)
	out, err := w.agentMethods()[method](ctx, in)
	if err != nil {
		return nil, err
	}
	return novatest.Raw(out), nil
}

const (
	otherHost     = "peer2"
	migrationUUID = "a324b11e-7a95-4b8d-bb2d-3e643bc4fa25"
)

// ownIDs make the user who runs the test the guests' root.
func ownIDs(t testing.TB) func(*Options) {
	t.Helper()
	if os.Getuid() != os.Getgid() {
		t.Skip("needs a user whose uid and gid are equal")
	}
	empty := filepath.Join(t.TempDir(), "empty")
	return func(o *Options) {
		o.IDPool = []storage.IDRange{{Base: uint32(os.Getuid()), Size: 4 * 65536}}
		o.EmptyImage = empty
	}
}

// twoHosts are a host with the captured server on it, and another one.
func twoHosts(t testing.TB) (source, destination *world) {
	t.Helper()
	return twoHostsWith(t, nil, nil)
}

// twoHostsWith is twoHosts for such a server as builtWith's.
func twoHostsWith(t testing.TB, flavor map[string]any, bdms []any, change ...func(*Options)) (source, destination *world) {
	t.Helper()
	change = append(change, ownIDs(t))
	source = builtWith(t, flavor, bdms, change...)
	destination = newWorldBeside(t, "zed", source, append(change, func(o *Options) { o.Host = otherHost; o.VIFPluggingTimeout = 0 })...)
	source.opts.VIFPluggingTimeout, source.Manager.opts.VIFPluggingTimeout = 0, 0
	dir, err := source.Roots.Mount(t.Context(), storage.Root{InstanceID: uuid})
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "data"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "data/file"), []byte("content"), 0o640))
	return source, destination
}

// flavorOf is the captured server's flavor with changes.
func (w *world) flavorOf(changes map[string]any) map[string]any {
	w.t.Helper()
	var f map[string]any
	require.NoError(w.t, json.Unmarshal(fieldsOf(w.t, w.nova.Instance(uuid, "flavor"))["flavor"], &f))
	data := maps.Clone(f["nova_object.data"].(map[string]any)) //nolint:forcetypeassert // a test's own
	maps.Copy(data, changes)
	f["nova_object.data"] = data
	delete(f, "nova_object.changes")
	return f
}

// prepare does what API, conductor and scheduler do for a resize, and returns prep_resize's arguments.
func prepare(source, destination *world, f map[string]any) rpc.Args {
	source.t.Helper()
	data := map[string]any{
		"id": 8, "uuid": migrationUUID, "instance_uuid": uuid, "source_compute": source.opts.Host, "source_node": source.opts.Host,
		"status": "pre-migrating", "migration_type": "resize", "dest_compute": nil, "dest_node": nil, "dest_host": nil,
	}
	fields := novatest.Fields{}
	for name, value := range data {
		fields[name] = novatest.Raw(value)
	}
	source.nova.AddMigration(fields)
	held := placement.Resources{"VCPU": 1, "MEMORY_MB": 64}
	source.placement.Allocate(migrationUUID, source.Tracker.ProviderUUID(), held)
	source.placement.Allocate(uuid, destination.Tracker.ProviderUUID(), held)
	build := source.capturedBuild()
	source.nova.Update(uuid, map[string]any{"task_state": "resize_prep", "vm_state": "active", "host": source.opts.Host, "node": source.opts.Host})
	return rpc.Args{
		"instance": source.nova.Instance(uuid, "metadata", "system_metadata", "info_cache", "flavor"), "flavor": novatest.Raw(f),
		"migration": novatest.Object("Migration", fields), "image": build["image"], "request_spec": build["request_spec"],
		"filter_properties": novatest.Raw(map[string]any{}), "clean_shutdown": novatest.Raw(true), "host_list": novatest.Raw([]any{}),
	}
}

// next waits for the cast of a method, hands it to a host and waits for its end.
func (w *world) next(method string) {
	w.t.Helper()
	var cast []novatest.Cast
	eventually(w.t, "cast of "+method, func() bool {
		cast = w.nova.Casts(method)
		return len(cast) > 0
	})
	w.step(method, cast[len(cast)-1].Args)
}

// step runs a method of a move; the wait for a root disk goes on behind it.
func (w *world) step(method string, args rpc.Args) {
	w.t.Helper()
	_, err := w.handler(method)(user(w.t), args)
	require.NoError(w.t, err)
	eventually(w.t, method+" to end", func() bool { return !w.journal.Has(uuid) })
}

func (w *world) status() string {
	w.t.Helper()
	return string(w.nova.Migration(migrationUUID)["status"])
}

func TestMoveToAnotherHost(t *testing.T) {
	source, destination := twoHosts(t)
	destination.step("prep_resize", prepare(source, destination, source.flavorOf(map[string]any{"id": 99, "memory_mb": 128, "vcpus": 2})))
	require.Equal(t, "active/resize_prep/"+testHost, source.nova.States(uuid))
	info, err := source.Driver.Info(t.Context(), uuid)
	require.NoError(t, err)
	require.Equal(t, driver.PowerStateRunning, info.PowerState, "the guest runs while it is copied")

	source.next("resize_instance")
	require.Equal(t, "active/resize_migrated/"+otherHost, source.nova.States(uuid))
	require.Empty(t, source.plugger.plugged())
	require.Equal(t, []string(nil), source.Tracker.Instances())

	destination.next("finish_resize")
	require.Equal(t, "resized/-/"+otherHost, source.nova.States(uuid))
	require.Equal(t, `"finished"`, source.status())
	got, ok := destination.driver.Instance(uuid)
	require.True(t, ok)
	require.Equal(t, driver.PowerStateRunning, got.State)
	require.Equal(t, int64(128<<20), got.Spec.Limits.MemoryBytes)
	content, err := os.ReadFile(filepath.Join(destination.roots.dir, uuid, "data/file"))
	require.NoError(t, err)
	require.Equal(t, "content", string(content))
	require.Equal(t, []string{uuid}, destination.Tracker.Instances())
	require.Contains(t, destination.neutron.state()[0], "@"+otherHost)

	args := rpc.Args{"instance": source.nova.Instance(uuid, "system_metadata"), "migration": novatest.Object("Migration", source.nova.Migration(migrationUUID))}
	source.step("confirm_resize", args)
	require.Equal(t, "active/-/"+otherHost, source.nova.States(uuid))
	require.Equal(t, `"confirmed"`, source.status())
	require.Equal(t, []string{uuid}, source.placement.Consumers())
	local, err := source.localInstances(t.Context())
	require.NoError(t, err)
	require.Empty(t, local)
	require.Empty(t, source.entries())
}

// revertArgs does what the API does for the revert of a resize, and returns revert_resize's arguments.
func revertArgs(source *world) rpc.Args {
	source.nova.Update(uuid, map[string]any{"task_state": "resize_reverting"})
	return rpc.Args{
		"instance":  source.nova.Instance(uuid, "metadata", "system_metadata", "info_cache", "flavor", "old_flavor", "new_flavor"),
		"migration": novatest.Object("Migration", source.nova.Migration(migrationUUID)), "request_spec": novatest.Raw(nil),
	}
}

func TestMoveIsReverted(t *testing.T) {
	source, destination := twoHosts(t)
	destination.step("prep_resize", prepare(source, destination, source.flavorOf(map[string]any{"id": 99, "memory_mb": 128})))
	source.next("resize_instance")
	destination.next("finish_resize")
	destination.step("revert_resize", revertArgs(source))
	local, err := destination.localInstances(t.Context())
	require.NoError(t, err)
	require.Empty(t, local)
	source.next("finish_revert_resize")
	require.Equal(t, "active/-/"+testHost, source.nova.States(uuid))
	require.Equal(t, `"reverted"`, source.status())
	got, _ := source.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, got.State)
	require.Equal(t, []string{uuid}, source.placement.Consumers())
	require.Equal(t, []string{uuid}, source.Tracker.Instances())
	require.Contains(t, source.neutron.state()[0], "@"+testHost)
}

// layeredRoots keep layers, or do not.
type layeredRoots struct {
	*fakeRoots
	keeps bool
}

func (r layeredRoots) KeepsLayers(storage.Root) bool { return r.keeps }

func (r layeredRoots) Layer(context.Context, string) (string, func() error, error) {
	return "", nil, storage.ErrUnsupported
}

// TestLayerIsNotAskedFor by a destination that could not keep it, though it has the image.
func TestLayerIsNotAskedFor(t *testing.T) {
	for _, keeps := range []bool{true, false} {
		source, destination := twoHosts(t)
		destination.Roots = layeredRoots{destination.roots, keeps}
		destination.step("prep_resize", prepare(source, destination, source.flavorOf(map[string]any{"id": 99})))
		require.Len(t, source.bus.asked, 1)
		require.Equal(t, keeps, string(source.bus.asked[0]["image_fingerprint"]) != `""`)
		source.endOffer(uuid)
		destination.drain()
	}
}

// TestMoveFailsOnTheDestination: whatever the destination lacks, the guest goes on where it is.
func TestMoveFailsOnTheDestination(t *testing.T) {
	for name, fail := range map[string]func(source, destination *world){
		"no disk":       func(_, d *world) { d.trail.fail("root.create", storage.ErrNoSpace) },
		"no source":     func(s, d *world) { delete(d.bus.hosts, s.opts.Host) },
		"no message":    func(s, _ *world) { s.nova.Fail("resize_instance", errBoom) },
		"too much":      func(_, d *world) { d.Manager.opts.RootDiskDefaultGB, d.Manager.opts.RootDiskMaxGB = 5, 1 },
		"no room":       func(_, d *world) { d.trail.fail("ephemeral.create", storage.ErrNoSpace) },
		"node not save": func(s, _ *world) { s.nova.Fail("ComputeNode.save", errBoom) },
	} {
		t.Run(name, func(t *testing.T) {
			was := map[string]any{"ephemeral_gb": 1}
			source, destination := twoHostsWith(t, was, nil)
			args := prepareDisks(source, destination, was, map[string]any{"id": 99, "memory_mb": 128, "ephemeral_gb": 1})
			fail(source, destination)
			destination.step("prep_resize", args)
			destination.drain()
			source.endOffer(uuid) // it would expire
			require.Equal(t, "active/-/"+testHost, source.nova.States(uuid))
			require.Equal(t, `"error"`, source.status())
			require.Len(t, source.nova.Faults(), 1)
			require.Equal(t, []string{uuid}, source.placement.Consumers())
			local, err := destination.localInstances(t.Context())
			require.NoError(t, err)
			require.Empty(t, local)
			info, err := source.Driver.Info(t.Context(), uuid)
			require.NoError(t, err)
			require.Equal(t, driver.PowerStateRunning, info.PowerState)
		})
	}
}

// TestSourceFails: a failure before the instance changes hosts starts the guest again where it was.
func TestSourceFails(t *testing.T) {
	source, destination := twoHosts(t)
	destination.step("prep_resize", prepare(source, destination, source.flavorOf(map[string]any{"id": 99})))
	source.nova.Fail("Migration.save", nil, errBoom)
	source.next("resize_instance")
	require.Equal(t, "active/-/"+testHost, source.nova.States(uuid))
	got, _ := source.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, got.State)
	require.NotEmpty(t, source.plugger.plugged())
	require.Equal(t, []string{uuid}, source.placement.Consumers())
	// The destination has everything, and is told that it is not wanted.
	destination.drain()
	local, err := destination.localInstances(t.Context())
	require.NoError(t, err)
	require.Empty(t, local)
}

// TestSourceRestartsInTheMiddle: the offer is gone with the process, so the move is taken back.
func TestSourceRestartsInTheMiddle(t *testing.T) {
	for name, c := range map[string]struct {
		task    string
		stopped bool
		anew    bool // the guest is started once more
	}{
		"before the guest is told to end": {"resize_prep", false, false},
		"while the guest ends":            {"resize_migrating", false, true},
		"after the guest has ended":       {"resize_migrating", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			source, destination := twoHosts(t)
			destination.step("prep_resize", prepare(source, destination, source.flavorOf(map[string]any{"id": 99})))
			cast := source.nova.Casts("resize_instance")[0]
			source.interrupted("resize_instance", cast.Args, nil)
			source.nova.Update(uuid, map[string]any{"task_state": c.task})
			before, _ := source.driver.Instance(uuid)
			if c.stopped {
				require.NoError(t, source.driver.Stop(t.Context(), uuid, 0, 0))
			}
			source.endOffer(uuid)
			source.restarted()
			require.NoError(t, source.InitHost(t.Context()))
			source.drain()
			require.Equal(t, "active/-/"+testHost, source.nova.States(uuid))
			got, _ := source.driver.Instance(uuid)
			require.Equal(t, driver.PowerStateRunning, got.State)
			require.Equal(t, c.anew, got.InitPID != before.InitPID)
			destination.drain() // it hears that the ticket is worth nothing any more
			local, err := destination.localInstances(t.Context())
			require.NoError(t, err)
			require.Empty(t, local)
		})
	}
}

// TestDestinationRestartsInTheMiddle: the wait for the rest of the root disk goes on.
func TestDestinationRestartsInTheMiddle(t *testing.T) {
	source, destination := twoHosts(t)
	destination.step("prep_resize", prepare(source, destination, source.flavorOf(map[string]any{"id": 99})))
	cast := source.nova.Casts("resize_instance")[0]
	destination.restarted()
	require.NoError(t, destination.InitHost(t.Context()))
	eventually(t, "the wait to go on", func() bool { return destination.arrivals.waits(uuid) })
	dir, err := source.Roots.Mount(t.Context(), storage.Root{InstanceID: uuid})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "data/late"), []byte("late"), 0o640))
	source.step("resize_instance", cast.Args)
	destination.next("finish_resize")
	require.Equal(t, "resized/-/"+otherHost, source.nova.States(uuid))
	content, err := os.ReadFile(filepath.Join(destination.roots.dir, uuid, "data/late"))
	require.NoError(t, err)
	require.Equal(t, "late", string(content))
}

// TestFinishIsRepeated: a finish_resize that was cut off comes again.
func TestFinishIsRepeated(t *testing.T) {
	source, destination := twoHosts(t)
	destination.step("prep_resize", prepare(source, destination, source.flavorOf(map[string]any{"id": 99})))
	source.next("resize_instance")
	eventually(t, "the root disk to be there", func() bool { return !destination.arrivals.waits(uuid) })
	cast := source.nova.Casts("finish_resize")[0]
	destination.interrupted("finish_resize", cast.Args, nil)
	source.nova.Update(uuid, map[string]any{"task_state": "resize_finish"})
	destination.restarted()
	require.NoError(t, destination.InitHost(t.Context()))
	eventually(t, "the step to end", func() bool { return !destination.journal.Has(uuid) })
	require.Equal(t, "resized/-/"+otherHost, source.nova.States(uuid))
	got, _ := destination.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, got.State)
}

func TestResizeOnTheSameHost(t *testing.T) {
	w := built(t, ownIDs(t))
	w.step("prep_resize", prepare(w, w, w.flavorOf(map[string]any{"id": 99, "memory_mb": 128})))
	w.next("resize_instance")
	w.next("finish_resize")
	require.Equal(t, "resized/-/"+testHost, w.nova.States(uuid))
	got, _ := w.driver.Instance(uuid)
	require.Equal(t, int64(128<<20), got.Spec.Limits.MemoryBytes)
	require.NotContains(t, w.driver.Calls(), "Stop "+uuid)
	w.step("confirm_resize", rpc.Args{"instance": w.nova.Instance(uuid), "migration": novatest.Object("Migration", w.nova.Migration(migrationUUID))})
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	_, ok := w.driver.Instance(uuid)
	require.True(t, ok, "the server is not removed")
}

func TestResizeToTheSameFlavorHere(t *testing.T) {
	w := built(t, ownIDs(t))
	w.step("prep_resize", prepare(w, w, w.flavorOf(nil)))
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	require.Contains(t, w.nova.Faults()[0], "Unable to migrate instance")
}

func TestSmallerDiskIsRefused(t *testing.T) {
	source, destination := twoHosts(t)
	args := prepare(source, destination, source.flavorOf(map[string]any{"id": 99, "root_gb": 1}))
	destination.Manager.opts.RootDiskDefaultGB = 5
	destination.step("prep_resize", args)
	require.Equal(t, "active/-/"+testHost, source.nova.States(uuid))
	require.Contains(t, source.nova.Faults()[0], "cannot be made smaller")
}

// TestRootDiskGrowsHere: on one host a larger root disk grows under its guest, which is stopped for it only where the kernel
// does not let the agent grow what is mounted.
func TestRootDiskGrowsHere(t *testing.T) {
	for name, busy := range map[string]bool{"mounted": false, "only unmounted": true} {
		t.Run(name, func(t *testing.T) {
			w := builtWith(t, map[string]any{"root_gb": 1}, nil, ownIDs(t))
			if busy {
				w.trail.fail("root.grow", storage.ErrBusy)
			}
			calls := len(w.driver.Calls())
			w.step("prep_resize", prepare(w, w, w.flavorOf(map[string]any{"id": 99, "root_gb": 7})))
			w.next("resize_instance")
			w.next("finish_resize")
			require.Equal(t, "resized/-/"+testHost, w.nova.States(uuid))
			require.True(t, w.trail.has("root.grow "+uuid))
			stopped := slices.ContainsFunc(w.driver.Calls()[calls:], func(call string) bool { return strings.HasPrefix(call, "Stop") })
			require.Equal(t, busy, stopped)
			require.Equal(t, busy, w.trail.has("root.mount "+uuid), "the next mount completes it")
			guest, _ := w.driver.Instance(uuid)
			require.Equal(t, driver.PowerStateRunning, guest.State)
			rec, _, err := w.record(uuid)
			require.NoError(t, err)
			require.Equal(t, 7, rec.Root.SizeGB)
		})
	}
}
