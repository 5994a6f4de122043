package compute

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/rpc"
	"github.com/compute-agent/compute-agent/vif"
)

var update = flag.Bool("update", false, "rewrite the transcripts under testdata")

// transcript compares what was done, lane by lane: lanes run side by side, each in order.
func transcript(t testing.TB, name string, lanes map[string][]string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txtar")
	var got strings.Builder // in txtar's format
	got.WriteString("What " + name + " does, in order within each lane. Rewritten by go test -update.\n")
	for _, lane := range []string{"instance", "ports", "events", "notifications", "placement", "guest", "links", "disk"} {
		got.WriteString("-- " + lane + " --\n")
		for _, line := range lanes[lane] {
			got.WriteString(line + "\n")
		}
	}
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got.String()), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got.String())
}

func (w *world) lanes() map[string][]string {
	onHost := func(prefixes ...string) []string {
		return slices.DeleteFunc(w.trail.all(), func(line string) bool {
			return !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(line, p) })
		})
	}
	placement := slices.Clone(w.placement.Log())
	for i := range placement {
		placement[i] = strings.ReplaceAll(placement[i], w.Tracker.ProviderUUID(), "PROVIDER")
	}
	return map[string][]string{
		"instance": w.nova.LogOf("Instance.", "InstanceFault", "BlockDeviceMapping", "cast"),
		// Three lanes in one list: the rows of ports and the info cache are stored at the same time.
		"ports":  slices.Concat(onHost("POST", "PUT", "DELETE"), w.nova.LogOf("VirtualInterface"), w.nova.LogOf("InstanceInfoCache")),
		"events": w.nova.LogOf("InstanceAction"), "notifications": w.sender.all(), "placement": placement,
		"guest": w.driver.Calls(), "links": onHost("plug", "unplug"), "disk": onHost("root", "glance"),
	}
}

func TestBuild(t *testing.T) {
	t.Parallel()
	w := newWorld(t).both()
	w.build(nil)
	lanes := w.lanes()
	w.toldAs("server-create", nil)
	transcript(t, "build", lanes)

	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	for field, want := range map[string]string{"power_state": "1", "node": testHost, "launched_on": testHost, "root_device_name": "/dev/sda"} {
		require.Equal(t, want, w.nova.Field(uuid, field), field)
	}
	require.NotEqual(t, "-", w.nova.Field(uuid, "launched_at"))
	var system map[string]string
	require.NoError(t, json.Unmarshal([]byte(w.nova.Field(uuid, "system_metadata")), &system))
	require.Equal(t, "member,reader", system["boot_roles"])
	require.Equal(t, "32", system["image_min_ram"], "the rest stays")

	guest, ok := w.driver.Instance(uuid)
	require.True(t, ok)
	require.Equal(t, "instance-0000000d", guest.Spec.Name)
	require.Equal(t, storage.IDRange{Base: 1_000_000, Size: 65536}, guest.Spec.IDs)
	require.Equal(t, []driver.NIC{{PortID: "port-1", Name: "eth0", Link: vif.Link{
		Host: "tapport-1", Peer: "tinport-1", MAC: "fa:16:3e:00:00:01", MTU: 1500,
	}}}, guest.NICs)
	require.Equal(t, []string{uuid}, w.images()[0].Instances)
	require.Equal(t, []string{uuid}, w.Tracker.Instances())
	require.Equal(t, []string{uuid}, w.placement.Consumers())
	info := w.instance("info_cache").NetworkInfo()
	require.Len(t, info, 1)
	require.Equal(t, "port-1", info[0].ID)
	require.Empty(t, w.waiters.Keys())
	w.noJournal()
	rec, ok, err := w.record(uuid)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, imageID, rec.ImageID)
	require.Len(t, w.nova.Casts("update_instance_info"), 1)
}

func TestBuildWithoutNetwork(t *testing.T) {
	t.Parallel()
	w := newWorldOf(t, "2024.1")
	w.build(map[string]any{"requested_networks": requested(map[string]any{"network_id": "none"})})
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, "1", w.nova.Field(uuid, "compute_id"), "the release has the column")
	require.Empty(t, w.neutron.state())
	guest, _ := w.driver.Instance(uuid)
	require.Empty(t, guest.NICs)
	require.Empty(t, w.nova.LogOf("VirtualInterface", "InstanceInfoCache"))
}

// requested is a NetworkRequestList.
func requested(networks ...map[string]any) any {
	var objects []any
	for _, n := range networks {
		data := map[string]any{"network_id": nil, "address": nil, "port_id": nil, "pci_request_id": nil, "tag": nil, "arq_uuid": nil, "device_profile": nil}
		maps.Copy(data, n)
		objects = append(objects, map[string]any{
			"nova_object.name": "NetworkRequest", "nova_object.namespace": "nova", "nova_object.version": "1.3", "nova_object.data": data,
		})
	}
	return map[string]any{
		"nova_object.name": "NetworkRequestList", "nova_object.namespace": "nova", "nova_object.version": "1.1", "nova_object.data": map[string]any{"objects": objects},
	}
}

func TestBuildOrderOfPorts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) { o.DefaultAccessIPNetwork = "demo-net" })
	w.neutron.addPort("own")
	w.build(map[string]any{"requested_networks": requested(map[string]any{"port_id": "own"}, map[string]any{"network_id": networkID})})
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	guest, _ := w.driver.Instance(uuid)
	require.Len(t, guest.NICs, 2)
	require.Equal(t, "own eth0 port-2 eth1", fmt.Sprintf("%s %s %s %s", guest.NICs[0].PortID, guest.NICs[0].Name, guest.NICs[1].PortID, guest.NICs[1].Name))
	info := w.instance("info_cache").NetworkInfo()
	require.True(t, info[0].PreserveOnDelete, "the user's own port outlives the server")
	require.False(t, info[1].PreserveOnDelete)
	require.Equal(t, info[1].Network.Subnets[0].IPs[0].Address, w.nova.Field(uuid, "access_ip_v4"))
}

func TestPlugTimeout(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		status  string // of the event; "": none comes
		fatal   bool
		timeout time.Duration
		active  bool // neutron says at the binding that the port is up
		fault   string
	}{
		{"fatal", "", true, 50 * time.Millisecond, false, "was not reported up within vif_plugging_timeout (50ms)"},
		{"not fatal", "", false, 50 * time.Millisecond, false, ""},
		{"failed, fatal", eventFailed, true, patience, false, "neutron failed to wire port port-1"},
		{"failed, not fatal", eventFailed, false, patience, false, ""},
		{"never wait", "", true, 0, false, ""},
		{"up already", "", true, patience, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(o *Options) { o.VIFPluggingTimeout, o.VIFPluggingIsFatal = c.timeout, c.fatal })
			if c.active {
				w.neutron.set("bridge", "ACTIVE")
			}
			if c.status != "" {
				w.plugEvents(c.status)
			}
			_, err := w.call(user(t), "build_and_run_instance", w.buildArgs(nil))
			require.NoError(t, err)
			if c.fault != "" {
				w.requireOutcome(failing{fault: c.fault})
				return
			}
			require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
			require.Empty(t, w.waiters.Keys())
		})
	}
}

func TestBuildTimeout(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) { o.InstanceBuildTimeout = 3 * time.Second }) // more than what comes before takes
	defer w.trail.block("root.create")()
	w.build(nil)
	w.requireOutcome(failing{fault: "instance_build_timeout"})
}

// TestBuildOfAnotherState: an instance that is not the build's to begin is left alone.
func TestBuildOfAnotherState(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		setUp     func(w *world)
		want      string
		consumers int
	}{
		{"another operation", func(w *world) { w.nova.Update(uuid, map[string]any{"task_state": "rebuilding"}) }, "building/rebuilding/-", 1},
		{"being deleted", func(w *world) { w.nova.Update(uuid, map[string]any{"task_state": "deleting"}) }, "building/deleting/-", 0},
		{"gone", func(w *world) { w.nova.RemoveInstance(uuid) }, "-/-/-", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			args := w.buildArgs(nil)
			c.setUp(w)
			_, err := w.call(user(t), "build_and_run_instance", args)
			require.NoError(t, err)
			require.Equal(t, c.want, w.nova.States(uuid))
			require.Len(t, w.placement.Consumers(), c.consumers)
			require.Empty(t, w.nova.Faults())
			require.Empty(t, w.nova.Casts("build_instances"))
			w.nothingLeft()
		})
	}
}

func TestUnreadableBuild(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, args := range map[string]rpc.Args{
		"nothing":  {},
		"no uuid":  {"instance": novatest.Object("Instance", novatest.Fields{"id": novatest.Raw(1)})},
		"no image": {"instance": json.RawMessage("7")},
	} {
		_, err := w.call(user(t), "build_and_run_instance", args)
		require.Error(t, err, name)
	}
	w.nothingLeft()
}

// TestDeleteOvertakesBuild: a delete that comes at any point of a build cancels it and
// does not wait for what takes long.
func TestDeleteOvertakesBuild(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		block string // the step that does not end by itself
		ready string // how the trail shows that it was reached; "": at once
	}{
		{"at once", "glance GET", ""},
		{"during the download", "glance GET", "glance GET /images/" + imageID + "/file"},
		{"during the making of the disk", "root.create", "root.create " + uuid},
		{"during the plugging", "plug", "plug own"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(o *Options) { o.VIFPluggingTimeout = 0 })
			w.neutron.addPort("own")
			args := w.buildArgs(map[string]any{"requested_networks": requested(map[string]any{"port_id": "own"})})
			defer w.trail.block(c.block)()
			_, err := w.handler("build_and_run_instance")(user(t), args)
			require.NoError(t, err)
			if c.ready != "" {
				eventually(t, c.ready, func() bool { return w.trail.has(c.ready) })
			}
			w.nova.Update(uuid, map[string]any{"task_state": "deleting"})
			// The API read the row before the claim, or after: both come.
			_, err = w.call(user(t), "terminate_instance", rpc.Args{"instance": instanceOn(t, args["instance"])})
			require.NoError(t, err)
			require.Equal(t, "true", w.nova.Field(uuid, "deleted"))
			require.Empty(t, w.nova.Faults())
			require.Empty(t, w.nova.Casts("build_instances"))
			require.Empty(t, w.placement.Consumers())
			require.Equal(t, []string{"own=@"}, w.neutron.state(), "the user's own port stays")
			w.nothingLeft()
		})
	}
}

// instanceOn is an instance object as the API sends it to its host.
func instanceOn(t testing.TB, raw json.RawMessage) json.RawMessage {
	t.Helper()
	fields := fieldsOf(t, raw)
	fields["host"] = novatest.Raw(testHost)
	fields["task_state"] = novatest.Raw("deleting")
	return novatest.Object("Instance", fields)
}

// TestDeleteOvertakesWaitingBuild: a build that waits for its turn is not begun.
func TestDeleteOvertakesWaitingBuild(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) { o.MaxConcurrentBuilds = 1 })
	require.NoError(t, w.builds.Acquire(t.Context(), 1))
	args := w.buildArgs(nil)
	_, err := w.handler("build_and_run_instance")(user(t), args)
	require.NoError(t, err)
	_, ok := w.journaled()
	require.True(t, ok, "an accepted build is in the journal")
	w.nova.Update(uuid, map[string]any{"task_state": "deleting"})
	_, err = w.call(user(t), "terminate_instance", rpc.Args{"instance": instanceOn(t, args["instance"])})
	require.NoError(t, err)
	require.Equal(t, "true", w.nova.Field(uuid, "deleted"))
	require.Empty(t, w.nova.LogOf("InstanceActionEvent.event_start compute__do"))
	w.nothingLeft()
	w.builds.Release(1)
}

// TestBuildSurvivesItsMessage: the end of the message's context does not end the build.
func TestBuildSurvivesItsMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	release := w.trail.block("root.create")
	w.plugEvents("completed")
	args := w.buildArgs(nil)
	ctx, cancel := context.WithCancel(user(t))
	_, err := w.handler("build_and_run_instance")(ctx, args)
	require.NoError(t, err)
	eventually(t, "root disk", func() bool { return w.trail.has("root.create " + uuid) })
	cancel()
	release()
	w.drain()
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
}

// TestDrainGivesUp: an agent that leaves does not wait for ever; the journal has the build.
func TestDrainGivesUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	release := w.trail.block("root.create")
	_, err := w.handler("build_and_run_instance")(user(t), w.buildArgs(nil))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, w.Drain(ctx), context.DeadlineExceeded)
	_, ok := w.journaled()
	require.True(t, ok)
	w.plugEvents("completed")
	release()
	for _, port := range []string{"port-1"} {
		eventually(t, "event", func() bool {
			return w.waiters.Deliver(uuid, eventVIFPlugged, port, "completed") || w.nova.VIFs(uuid) > 0
		})
	}
}
