package compute

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/rpc"
	"github.com/compute-agent/compute-agent/vif"
)

// failing is a build whose outcome is the subject.
type failing struct {
	name  string
	args  map[string]any
	setUp func(w *world)
	fault string // part of the fault's message; "": the build is rescheduled
}

// TestBuildFailures: what another host may do is rescheduled, what none can do is aborted
// with its cause; nothing is left either way.
func TestBuildFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []failing{
		{"guest does not start", nil, func(w *world) { w.driver.Fail("Start", "", errBoom) }, ""},
		{"guest not made", nil, func(w *world) { w.driver.Fail("Create", "", driver.ErrExists) }, ""},
		{"no space for the disk", nil, func(w *world) { w.trail.fail("root.create", storage.ErrNoSpace) }, ""},
		{"disk not mounted", nil, func(w *world) { w.trail.fail("root.mount", errBoom) }, ""},
		{"port not plugged", nil, func(w *world) { w.trail.fail("plug", errBoom) }, ""},
		{"port of an unknown kind", nil, func(w *world) { w.trail.fail("plug", vif.ErrUnsupported) }, ""},
		{"port not bound here", nil, func(w *world) { w.neutron.set("binding_failed", "DOWN") }, ""},
		{"neutron is down", nil, func(w *world) { w.neutron.setDown(true) }, ""},
		{"claim too large", nil, func(w *world) { w.nova.Fail("ComputeNode.save", errBoom) }, ""},
		{"image is gone", nil, func(w *world) { w.glance.setStatus(http.StatusNotFound) }, ""},
		{"glance is down", nil, func(w *world) { w.glance.setStatus(http.StatusServiceUnavailable) }, ""},
		{"no ids left", nil, func(w *world) { w.opts.IDPool = nil; w.Manager.opts.IDPool = nil }, ""},
		{"network info not saved", nil, func(w *world) { w.nova.Fail("InstanceInfoCache.save", errBoom) }, ""},
		{"panic in a step", nil, func(w *world) { w.nova.On("BlockDeviceMapping.save", func() { panic("a mistake") }) }, ""},

		{"image has no data", nil, func(w *world) { w.glance.setStatus(http.StatusNoContent) }, "image"},
		{"image is no root file system", map[string]any{"image": map[string]any{"id": imageID, "disk_format": "qcow2", "container_format": "bare"}}, nil, `disk_format "qcow2"`},
		{"no image", map[string]any{"image": map[string]any{}}, nil, "boot from volume is not supported"},
		{"image needs more memory", map[string]any{"image": map[string]any{"id": imageID, "min_ram": 65}}, nil, "memory"},
		{"port refused", map[string]any{"requested_networks": requested(map[string]any{"port_id": "gone"})}, nil, "gone"},
		{"port in use", map[string]any{"requested_networks": requested(map[string]any{"port_id": "taken"})}, func(w *world) {
			w.neutron.addPort("taken")
			w.neutron.ports["taken"]["device_id"] = "other"
		}, "taken"},
		{"accelerator", map[string]any{"accel_uuids": []string{"a"}}, nil, "accelerators"},
		{"arguments that are not readable", map[string]any{"security_groups": 7}, nil, "security_groups"},
		{"another operation took it", nil, func(w *world) {
			w.nova.On("BlockDeviceMapping.save", func() {
				w.nova.On("BlockDeviceMapping.save", nil)
				w.nova.Fail("Instance.save", nil, novatest.Failure("UnexpectedTaskStateError"))
			})
		}, "aborted"},
		{"leftovers on the host", nil, func(w *world) {
			w.driver.Fail("Start", "", errBoom)
			w.driver.Fail("Destroy", "", driver.ErrTimeout)
		}, "not removed from the host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			args := w.buildArgs(c.args)
			w.plugEvents("completed")
			if c.setUp != nil {
				c.setUp(w)
			}
			_, err := w.call(user(t), "build_and_run_instance", args)
			require.NoError(t, err, "a cast has no answer")
			w.requireOutcome(c)
		})
	}
}

// requireOutcome checks the end of a failed build.
func (w *world) requireOutcome(c failing) {
	t := w.t
	t.Helper()
	for _, field := range []string{"host", "node", "launched_on"} {
		require.Equal(t, "-", w.nova.Field(uuid, field), field)
	}
	require.Empty(t, w.placement.Consumers(), "the allocation is released")
	handedBack := w.nova.Casts("build_instances")
	finish := w.nova.LogOf("InstanceActionEvent.event_finish")
	require.Len(t, finish, 1)
	require.Contains(t, w.sender.all(), "ERROR compute.instance.create.error")
	if c.fault == "" {
		require.Equal(t, "building/scheduling/-", w.nova.States(uuid))
		require.Len(t, handedBack, 1)
		require.Empty(t, w.nova.Faults())
		require.Equal(t, "InstanceActionEvent.event_finish_with_failure compute__do_build_and_run_instance", finish[0])
	} else {
		require.Equal(t, "error/-/-", w.nova.States(uuid))
		require.Empty(t, handedBack)
		require.Len(t, w.nova.Faults(), 1)
		require.Contains(t, strings.ToLower(w.nova.Faults()[0]), strings.ToLower(c.fault))
		require.Contains(t, finish[0], "failed: ")
	}
	for _, port := range w.neutron.state() {
		require.Equal(t, "taken=other@", port, "ports are deleted or released")
	}
	if c.name == "leftovers on the host" {
		require.NoError(t, w.reapDeleted(t.Context()), "a later turn removes them")
	}
	w.nothingLeft()
}

func TestReschedule(t *testing.T) {
	t.Parallel()
	w := newWorldOf(t, "2024.1")
	w.neutron.addPort("own")
	args := w.buildArgs(map[string]any{"requested_networks": requested(map[string]any{"port_id": "own"})})
	w.plugEvents("completed")
	w.driver.Fail("Start", "", errors.New("lxc_start: no such init"))
	_, err := w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)

	cast := w.nova.Casts("build_instances")[0]
	require.Equal(t, "conductor", cast.Topic)
	for _, name := range []string{"image", "injected_files", "requested_networks", "security_groups", "request_spec", "admin_password"} {
		require.JSONEq(t, string(args[name]), string(cast.Args[name]), name)
	}
	require.JSONEq(t, "["+string(args["host_list"])+"]", string(cast.Args["host_lists"]))
	var properties struct {
		Retry struct {
			NumAttempts int      `json:"num_attempts"`
			Exc         []string `json:"exc"`
			ExcReason   string   `json:"exc_reason"`
		} `json:"retry"`
	}
	require.NoError(t, json.Unmarshal(cast.Args["filter_properties"], &properties))
	require.Equal(t, 1, properties.Retry.NumAttempts)
	require.Contains(t, properties.Retry.ExcReason, "no such init")
	require.Len(t, properties.Retry.Exc, 1)
	var instances []novatest.Fields
	require.NoError(t, json.Unmarshal(cast.Args["instances"], &instances))
	data := fieldsOf(t, novatest.Raw(instances[0]))
	require.Equal(t, `null "scheduling"`, fmt.Sprintf("%s %s", data["host"], data["task_state"]))

	// The row is free, the allocation gone and the ports released before the conductor hears of it.
	log := w.nova.LogOf("Instance.save", "VirtualInterface.delete", "cast build")
	require.Equal(t, "cast build_instances", log[len(log)-1])
	require.Contains(t, log[len(log)-2], `compute_id=null host=null launched_on=null node=null task_state="scheduling"`)
	require.Contains(t, log[len(log)-2], "availability_zone=null")
	require.Equal(t, "VirtualInterface.delete_by_instance_uuid", log[len(log)-3])
	require.Equal(t, []string{"own=@"}, w.neutron.state())
	require.Equal(t, "[]", w.nova.NetworkInfo(uuid))

	// The next host can record the same port again.
	w.nova.Update(uuid, map[string]any{"task_state": "scheduling"})
	_, err = w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
}

// TestNoReschedule: a forced host and an empty list of alternates end in ERROR with the cause.
func TestNoReschedule(t *testing.T) {
	t.Parallel()
	for name, args := range map[string]map[string]any{
		"forced host":   {"filter_properties": map[string]any{"force_hosts": []string{testHost}, "limits": map[string]any{}}},
		"null retry":    {"filter_properties": map[string]any{"retry": nil}},
		"no properties": {"filter_properties": nil},
		"no alternates": {"host_list": []any{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.driver.Fail("Start", "", errBoom)
			w.build(args)
			w.requireOutcome(failing{fault: "boom"})
		})
	}
}

// TestRescheduleFails: a build that cannot be handed back ends in ERROR with its own cause.
func TestRescheduleFails(t *testing.T) {
	t.Parallel()
	for name, setUp := range map[string]func(w *world){
		"row not freed":      func(w *world) { w.nova.Fail("Instance.save", nil, nil, nil, nil, errBoom) },
		"conductor not told": func(w *world) { w.nova.Fail("build_instances", errBoom) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			args := w.buildArgs(nil)
			w.plugEvents("completed")
			w.driver.Fail("Start", "", errors.New("the cause"))
			setUp(w)
			_, err := w.call(user(t), "build_and_run_instance", args)
			require.NoError(t, err)
			w.requireOutcome(failing{fault: "the cause"})
		})
	}
	w := newWorld(t)
	args := w.buildArgs(nil)
	w.plugEvents("completed")
	w.driver.Fail("Start", "", errors.New("the cause"))
	w.placement.SetDown(true)
	_, err := w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	require.Equal(t, "error/-/-", w.nova.States(uuid), "the next host's claim could not replace the allocation")
	require.Contains(t, w.nova.Faults()[0], "the cause")
}

// TestOutcomeNotStored: while no conductor answers the outcome is tried again, and when
// that does not help, the journal keeps the build for the next start.
func TestOutcomeNotStored(t *testing.T) {
	t.Parallel()
	silence := fmt.Errorf("no answer: %w", rpc.ErrTimeout)
	w := newWorld(t)
	args := w.buildArgs(map[string]any{"host_list": []any{}})
	w.plugEvents("completed")
	w.driver.Fail("Start", "", errBoom)
	w.nova.Fail("Instance.save", nil, nil, nil, nil, silence, silence)
	_, err := w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	require.Equal(t, "error/-/-", w.nova.States(uuid))
	w.noJournal()

	w = newWorld(t)
	args = w.buildArgs(map[string]any{"host_list": []any{}})
	w.plugEvents("completed")
	w.driver.Fail("Start", "", errBoom)
	w.nova.Fail("Instance.save", nil, nil, nil, nil, silence, silence, silence, silence, silence)
	_, err = w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	require.Equal(t, "building/spawning/"+testHost, w.nova.States(uuid))
	require.Equal(t, []string{uuid}, w.placement.Consumers(), "what is not known to be over keeps its resources")
	w.restarted()
	require.NoError(t, w.InitHost(t.Context()))
	w.drain()
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid), "the next start builds it")
	w.noJournal()
}
