package resource

import (
	"slices"
	"strconv"

	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// usage is what one instance takes, and what the node's stats count of it.
type usage struct {
	vcpus, memoryMB, diskGB int
	vmState, taskState      string
	project, osType         string
}

// usageOf reads an instance's flavor. A volume-backed server takes no root disk: it
// has no image (nova/compute/utils.py:is_volume_backed_instance). Nor does one in a pool that is not the default one.
func usageOf(inst *object.Instance, f *object.Flavor) usage {
	u := usage{vmState: inst.VMState, taskState: inst.TaskState, project: inst.ProjectID, osType: inst.OSType}
	if f == nil {
		u.vcpus, u.memoryMB, u.diskGB = inst.VCPUs, inst.MemoryMB, inst.RootGB+inst.EphemeralGB
		return u
	}
	u.vcpus, u.memoryMB, u.diskGB = f.VCPUs, f.MemoryMB, f.EphemeralGB+f.Swap/1024
	if inst.ImageRef != "" && !inPool(inst, f) {
		u.diskGB += f.RootGB
	}
	return u
}

// removed tells that an instance takes nothing any more
// (nova/compute/vm_states.py:allow_resource_removal).
func removed(inst *object.Instance) bool {
	return inst.VMState == object.VMStateDeleted ||
		inst.VMState == object.VMStateShelvedOffloaded && inst.TaskState != object.TaskStateSpawning
}

// workloadTasks are the tasks that count as I/O load (nova/compute/stats.py:io_workload).
var workloadTasks = []string{
	object.TaskStateResizeMigrating, object.TaskStateRebuilding, object.TaskStateResizePrep, object.TaskStateImageSnapshot,
	object.TaskStateImageBackup, object.TaskStateRescuing, object.TaskStateUnshelving,
}

// resizeTasks are the tasks of a resize between its claim and its end
// (nova/compute/resource_tracker.py:_instance_in_resize_state).
var resizeTasks = []string{
	object.TaskStateResizePrep, object.TaskStateResizeMigrating, object.TaskStateResizeMigrated, object.TaskStateResizeFinish,
	object.TaskStateResizeReverting,
}

// resizing tells that an instance may hold resources of two flavors.
func resizing(inst *object.Instance) bool {
	return inst.VMState == object.VMStateResized || slices.Contains(resizeTasks, inst.TaskState)
}

// stats makes ComputeNode.stats, which scheduler filters and weighers read
// (nova/compute/stats.py). Python prints None where there is no value.
func stats(usages map[string]usage, failedBuilds int, uptime string) (out map[string]*string, workload int) {
	counts := map[string]int{"num_instances": len(usages), "io_workload": 0}
	none := func(s string) string {
		if s == "" {
			return "None"
		}
		return s
	}
	for _, u := range usages {
		counts["num_vm_"+none(u.vmState)]++
		counts["num_task_"+none(u.taskState)]++
		counts["num_os_type_"+none(u.osType)]++
		counts["num_proj_"+none(u.project)]++
		if u.vmState == object.VMStateBuilding {
			counts["io_workload"]++
		}
		if slices.Contains(workloadTasks, u.taskState) {
			counts["io_workload"]++
		}
		if u.taskState != object.TaskStateNone {
			workload++
		}
	}
	out = make(map[string]*string, len(counts)+2)
	for key, n := range counts {
		text := strconv.Itoa(n)
		out[key] = &text
	}
	failed := strconv.Itoa(failedBuilds)
	out["failed_builds"] = &failed
	if uptime != "" {
		out["uptime"] = &uptime
	}
	return out, workload
}
