package novatest

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"
)

var null = json.RawMessage("null")

// handlers are the object methods that the conductor knows. c.mu is held.
var handlers = map[string]func(c *Conductor, in *request) (json.RawMessage, error){
	"Instance.get_by_uuid":                          getInstance,
	"Instance.save":                                 saveInstance,
	"Instance.destroy":                              destroyInstance,
	"Instance.drop_migration_context":               dropMigrationContext,
	"InstanceList.get_by_host":                      instancesByHost,
	"InstanceList.get_by_host_and_node":             instancesByHost,
	"InstanceList.get_by_filters":                   instancesByFilters,
	"InstanceInfoCache.get_by_instance_uuid":        getCache,
	"InstanceInfoCache.save":                        saveCache,
	"InstanceActionEvent.event_start":               startEvent,
	"InstanceActionEvent.event_finish_with_failure": finishEvent,
	"InstanceActionEventList.get_by_action":         eventsOfAction,
	"InstanceActionList.get_by_instance_uuid":       actionsOfInstance,
	"InstanceAction.action_start":                   startAction,
	"InstanceFault.create":                          createFault,
	"VirtualInterface.create":                       createVIF,
	"VirtualInterface.delete_by_instance_uuid":      deleteVIFs,
	"VirtualInterface.get_by_uuid":                  getVIF,
	"VirtualInterface.destroy":                      destroyVIF,
	"InstanceDeviceMetadata.get_by_instance_uuid":   getDevices,
	"BlockDeviceMapping.save":                       saveBDM,
	"BlockDeviceMapping.destroy":                    destroyBDM,
	"BlockDeviceMappingList.get_by_instance_uuid":   getBDMs,
	"ComputeNode.get_by_uuid":                       getNode,
	"ComputeNodeList.get_all_by_host":               nodesByHost,
	"ComputeNode.create":                            createNode,
	"ComputeNode.save":                              saveNode,
	"Service.get_by_host_and_binary":                getService,
	"Service.get_by_compute_host":                   getComputeService,
	"Service.create":                                createService,
	"Service.save":                                  saveService,
	"MigrationList.get_in_progress_and_error":       migrationsInProgress,
	"Migration.save":                                saveMigration,
	"MigrationList.get_by_filters":                  migrationsByFilters,
	"MigrationList.get_unconfirmed_by_dest_compute": migrationsInProgress,
	"MigrationContext.get_by_instance_uuid":         noMigrationContext,
	"ConsoleAuthToken.authorize":                    authorize,
	"TaskLog.get":                                   getTask,
	"TaskLog.begin_task":                            beginTask,
	"TaskLog.end_task":                              saved,
	"InstanceList._get_active_by_window_joined":     activeInstances,
	"ConsoleAuthToken.clean_expired_console_auths":  nothing,
}

func nothing(*Conductor, *request) (json.RawMessage, error) { return null, nil }

// saved answers a remote method of an object with updates.
func saveBDM(c *Conductor, in *request) (json.RawMessage, error) {
	for i, raw := range c.bdms {
		var row struct {
			Data Fields `json:"nova_object.data"`
		}
		if err := json.Unmarshal(raw, &row); err != nil {
			return nil, err
		}
		if string(row.Data["id"]) == string(in.Object.Data["id"]) {
			maps.Copy(row.Data, in.changed())
			c.bdms[i] = Object("BlockDeviceMapping", row.Data)
		}
	}
	return saved(c, in)
}

func destroyBDM(c *Conductor, in *request) (json.RawMessage, error) {
	c.bdms = slices.DeleteFunc(c.bdms, func(raw json.RawMessage) bool {
		var row struct {
			Data Fields `json:"nova_object.data"`
		}
		return json.Unmarshal(raw, &row) == nil && string(row.Data["id"]) == string(in.Object.Data["id"])
	})
	return saved(c, in)
}

func saved(_ *Conductor, in *request) (json.RawMessage, error) {
	return updates(in.changed()), nil
}

func updates(fields Fields) json.RawMessage {
	out := maps.Clone(fields)
	out["obj_what_changed"] = Raw([]string{})
	return Raw([]any{out, nil})
}

// taskKey names a task and its period, of which one is recorded.
func taskKey(name, host, begin string) string {
	return name + " " + host + " " + strings.TrimSuffix(strings.TrimSuffix(begin, "Z"), ".000000")
}

func getTask(c *Conductor, in *request) (json.RawMessage, error) {
	if !c.taskLogs[taskKey(in.arg(0, ""), in.arg(3, ""), in.arg(1, ""))] {
		return null, nil
	}
	return Object("TaskLog", Fields{"task_name": Raw(in.arg(0, ""))}), nil
}

func beginTask(c *Conductor, in *request) (json.RawMessage, error) {
	key := taskKey(text(in.Object.Data["task_name"]), text(in.Object.Data["host"]), text(in.Object.Data["period_beginning"]))
	if c.taskLogs[key] {
		return nil, Failure("TaskAlreadyRunning")
	}
	c.taskLogs[key] = true
	return updates(in.changed()), nil
}

func activeInstances(c *Conductor, in *request) (json.RawMessage, error) {
	host := in.arg(3, "")
	var attrs json.RawMessage
	if len(in.Args) > 4 {
		attrs = in.Args[4]
	}
	return c.instancesWhere(attrs, func(row Fields) bool { return text(row["host"]) == host }), nil
}

// authorize gives every console the same token.
func authorize(_ *Conductor, in *request) (json.RawMessage, error) {
	for _, field := range []string{"console_type", "host", "port", "internal_access_path", "instance_uuid", "access_url_base"} {
		if in.Object.Data[field] == nil {
			return nil, errors.New("the token has no " + field)
		}
	}
	return Raw([]any{Fields{"id": Raw(1), "token": Raw("token-1"), "obj_what_changed": Raw([]string{})}, "token-1"}), nil
}

func getInstance(c *Conductor, in *request) (json.RawMessage, error) {
	uuid := in.arg(0, "uuid")
	row, ok := c.instances[uuid]
	if !ok || string(row["deleted"]) == "true" && in.from.ReadDeleted != "yes" {
		return nil, Failure("InstanceNotFound")
	}
	return c.instance(uuid, in.Kwargs["expected_attrs"]), nil
}

func saveInstance(c *Conductor, in *request) (json.RawMessage, error) {
	uuid := text(in.Object.Data["uuid"])
	row, ok := c.instances[uuid]
	if !ok || string(row["deleted"]) == "true" {
		return nil, Failure("InstanceNotFound")
	}
	if !expected(in.Kwargs["expected_task_state"], row["task_state"]) {
		if text(row["task_state"]) == "deleting" {
			return nil, Failure("UnexpectedDeletingTaskStateError")
		}
		return nil, Failure("UnexpectedTaskStateError")
	}
	if !expected(in.Kwargs["expected_vm_state"], row["vm_state"]) {
		return nil, Failure("InstanceUpdateConflict")
	}
	changes := in.changed()
	maps.Copy(row, changes)
	return updates(changes), nil
}

// expected checks a condition of a save: a state or a list of states; absent is no condition.
func expected(condition, actual json.RawMessage) bool {
	if condition == nil || string(condition) == "null" {
		return true
	}
	var states []json.RawMessage
	if json.Unmarshal(condition, &states) != nil {
		states = []json.RawMessage{condition}
	}
	if actual == nil {
		actual = null
	}
	return slices.ContainsFunc(states, func(s json.RawMessage) bool { return string(s) == string(actual) })
}

func destroyInstance(c *Conductor, in *request) (json.RawMessage, error) {
	row, ok := c.instances[text(in.Object.Data["uuid"])]
	if !ok || string(row["deleted"]) == "true" {
		return nil, Failure("InstanceNotFound")
	}
	if in.Object.Data["host"] == nil || string(in.Object.Data["host"]) == "null" {
		return nil, Failure("ObjectActionError")
	}
	uuid := text(row["uuid"])
	row["deleted"], row["deleted_at"] = Raw(true), Raw(time.Now().UTC().Format("2006-01-02T15:04:05Z"))
	delete(c.caches, uuid)
	maps.DeleteFunc(c.vifs, func(_, of string) bool { return of == uuid })
	return updates(Fields{"deleted": row["deleted"], "deleted_at": row["deleted_at"]}), nil
}

func instancesByHost(c *Conductor, in *request) (json.RawMessage, error) {
	host := in.arg(0, "host")
	return c.instancesWhere(in.Kwargs["expected_attrs"], func(row Fields) bool { return text(row["host"]) == host }), nil
}

func instancesByFilters(c *Conductor, in *request) (json.RawMessage, error) {
	var filters map[string]json.RawMessage
	if err := json.Unmarshal(in.Args[0], &filters); err != nil {
		return nil, err
	}
	return c.instancesWhere(in.Kwargs["expected_attrs"], func(row Fields) bool {
		for name, want := range filters {
			if !expected(want, row[name]) && (string(want) != "null" || show(row[name]) != "-") {
				return false
			}
		}
		return true
	}), nil
}

func getCache(c *Conductor, in *request) (json.RawMessage, error) {
	uuid := in.arg(0, "instance_uuid")
	if _, ok := c.caches[uuid]; !ok {
		return nil, Failure("InstanceInfoCacheNotFound")
	}
	return c.cache(uuid), nil
}

func saveCache(c *Conductor, in *request) (json.RawMessage, error) {
	uuid := text(in.Object.Data["instance_uuid"])
	if _, ok := c.caches[uuid]; !ok {
		return nil, Failure("InstanceInfoCacheNotFound")
	}
	c.caches[uuid] = text(in.Object.Data["network_info"])
	return updates(in.changed()), nil
}

func createFault(c *Conductor, in *request) (json.RawMessage, error) {
	c.faults = append(c.faults, in.Object.Data)
	return updates(Fields{"id": Raw(1)}), nil
}

func createVIF(c *Conductor, in *request) (json.RawMessage, error) {
	address := text(in.Object.Data["address"])
	if _, ok := c.vifs[address]; ok {
		return nil, Failure("VirtualInterfaceCreateException") // the column is unique
	}
	c.vifs[address] = text(in.Object.Data["instance_uuid"])
	return updates(Fields{"id": Raw(1)}), nil
}

func deleteVIFs(c *Conductor, in *request) (json.RawMessage, error) {
	uuid := in.arg(0, "instance_uuid")
	maps.DeleteFunc(c.vifs, func(_, of string) bool { return of == uuid })
	return null, nil
}

func getVIF(c *Conductor, in *request) (json.RawMessage, error) {
	port := in.arg(0, "uuid")
	for address, instance := range c.vifs {
		if mac, of, _ := strings.Cut(address, "/"); of == port {
			return Object("VirtualInterface", Fields{
				"id": Raw(1), "uuid": Raw(port), "address": Raw(mac), "instance_uuid": Raw(instance),
			}), nil
		}
	}
	return null, nil
}

func destroyVIF(c *Conductor, in *request) (json.RawMessage, error) {
	port := text(in.Object.Data["uuid"])
	maps.DeleteFunc(c.vifs, func(address, _ string) bool { return strings.HasSuffix(address, "/"+port) })
	return updates(Fields{}), nil
}

func getDevices(c *Conductor, in *request) (json.RawMessage, error) {
	if devices, ok := c.instances[in.arg(0, "instance_uuid")]["device_metadata"]; ok {
		return devices, nil
	}
	return null, nil
}

func getBDMs(c *Conductor, _ *request) (json.RawMessage, error) {
	return list("BlockDeviceMappingList", c.bdms), nil
}

func getNode(c *Conductor, in *request) (json.RawMessage, error) {
	node, ok := c.nodes[in.arg(0, "uuid")]
	if !ok || string(node["deleted"]) == "true" && in.from.ReadDeleted != "yes" {
		return nil, Failure("ComputeHostNotFound")
	}
	return Object("ComputeNode", node), nil
}

func nodesByHost(c *Conductor, in *request) (json.RawMessage, error) {
	host := in.arg(0, "host")
	var found []json.RawMessage
	for _, uuid := range slices.Sorted(maps.Keys(c.nodes)) {
		if node := c.nodes[uuid]; text(node["host"]) == host && string(node["deleted"]) != "true" {
			found = append(found, Object("ComputeNode", node))
		}
	}
	if len(found) == 0 {
		return nil, Failure("ComputeHostNotFound")
	}
	return list("ComputeNodeList", found), nil
}

func createNode(c *Conductor, in *request) (json.RawMessage, error) {
	uuid := text(in.Object.Data["uuid"])
	for other, node := range c.nodes {
		if other != uuid && text(node["host"]) == text(in.Object.Data["host"]) &&
			text(node["hypervisor_hostname"]) == text(in.Object.Data["hypervisor_hostname"]) {
			return nil, Failure("DuplicateRecord")
		}
	}
	node := maps.Clone(in.Object.Data)
	node["id"] = Raw(c.nextID)
	c.nextID++
	c.nodes[uuid] = node
	return updates(Fields{"id": node["id"]}), nil
}

func saveNode(c *Conductor, in *request) (json.RawMessage, error) {
	node, ok := c.nodes[text(in.Object.Data["uuid"])]
	if !ok || string(node["deleted"]) == "true" && in.from.ReadDeleted != "yes" {
		return nil, Failure("ComputeHostNotFound")
	}
	if string(in.Object.Data["cpu_info"]) == "null" {
		return nil, errors.New("the column cpu_info refuses null")
	}
	changes := in.changed()
	maps.Copy(node, changes)
	return updates(changes), nil
}

func (c *Conductor) service(host string) Fields {
	for _, s := range c.services {
		if text(s["host"]) == host {
			return s
		}
	}
	return nil
}

func getService(c *Conductor, in *request) (json.RawMessage, error) {
	if s := c.service(in.arg(0, "host")); s != nil {
		return Object("Service", s), nil
	}
	return null, nil
}

func getComputeService(c *Conductor, in *request) (json.RawMessage, error) {
	if s := c.service(in.arg(0, "host")); s != nil {
		return Object("Service", s), nil
	}
	return nil, Failure("ComputeHostNotFound")
}

func createService(c *Conductor, in *request) (json.RawMessage, error) {
	if c.service(text(in.Object.Data["host"])) != nil {
		return nil, Failure("ServiceBinaryExists")
	}
	s := maps.Clone(in.Object.Data)
	s["id"] = Raw(c.nextID)
	c.nextID++
	c.services = append(c.services, s)
	return updates(Fields{"id": s["id"]}), nil
}

func saveService(c *Conductor, in *request) (json.RawMessage, error) {
	for _, s := range c.services {
		if string(s["id"]) == string(in.Object.Data["id"]) {
			changes := in.changed()
			maps.Copy(s, changes)
			return updates(changes), nil
		}
	}
	return nil, Failure("ServiceNotFound")
}

func migrationsInProgress(c *Conductor, _ *request) (json.RawMessage, error) {
	var found []json.RawMessage
	for _, m := range c.migrations {
		found = append(found, Object("Migration", m))
	}
	return list("MigrationList", found), nil
}
