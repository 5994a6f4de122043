package novatest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// versions are those of the objects that the conductor gives.
var versions = map[string]string{
	"Instance": "2.7", "InstanceList": "2.6", "InstanceInfoCache": "1.5", "ComputeNode": "1.19", "ComputeNodeList": "1.17",
	"Service": "1.22", "Migration": "1.7", "MigrationList": "1.5", "Flavor": "1.2", "BlockDeviceMappingList": "1.18", "BlockDeviceMapping": "1.21",
	"VirtualInterface": "1.3", "TaskLog": "1.0", "InstanceAction": "1.2", "InstanceActionList": "1.1", "InstanceActionEvent": "1.4",
	"InstanceActionEventList": "1.1",
}

// Object wraps fields into an envelope.
func Object(class string, fields Fields) json.RawMessage {
	return Raw(map[string]any{
		"nova_object.name": class, "nova_object.namespace": "nova", "nova_object.version": versions[class], "nova_object.data": fields,
	})
}

func list(class string, objects []json.RawMessage) json.RawMessage {
	if objects == nil {
		objects = []json.RawMessage{}
	}
	return Object(class, Fields{"objects": Raw(objects)})
}

// SetBDMs stores the block device mappings of every instance.
func (c *Conductor) SetBDMs(bdms []any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bdms = nil
	for _, b := range bdms {
		c.bdms = append(c.bdms, Raw(b))
	}
}

// SetInstance stores a row with all its attributes; a field info_cache is taken apart.
func (c *Conductor) SetInstance(fields Fields) {
	c.mu.Lock()
	defer c.mu.Unlock()
	row := maps.Clone(fields)
	uuid := text(row["uuid"])
	var cache struct {
		Data struct {
			NetworkInfo *string `json:"network_info"`
		} `json:"nova_object.data"`
	}
	_ = json.Unmarshal(row["info_cache"], &cache) // absent: an empty one
	c.caches[uuid] = "[]"
	if cache.Data.NetworkInfo != nil {
		c.caches[uuid] = *cache.Data.NetworkInfo
	}
	delete(row, "info_cache")
	c.instances[uuid] = row
}

// Update changes fields of a row, as the API does behind the agent's back.
func (c *Conductor) Update(uuid string, changes map[string]any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, value := range changes {
		c.instances[uuid][name] = Raw(value)
	}
}

// RemoveInstance removes a row altogether.
func (c *Conductor) RemoveInstance(uuid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.instances, uuid)
}

// Instance returns the object of a row as the API sends it, with some attributes.
func (c *Conductor) Instance(uuid string, attrs ...string) json.RawMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.instance(uuid, Raw(attrs))
}

// Field returns a row's field as text: a string's content, any other value as JSON.
func (c *Conductor) Field(uuid, name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return show(c.instances[uuid][name])
}

// States returns vm_state, task_state and host of a row, "-" for null.
func (c *Conductor) States(uuid string) string {
	return fmt.Sprintf("%s/%s/%s", c.Field(uuid, "vm_state"), c.Field(uuid, "task_state"), c.Field(uuid, "host"))
}

func show(raw json.RawMessage) string {
	if raw == nil || string(raw) == "null" {
		return "-"
	}
	if raw[0] == '"' {
		return text(raw)
	}
	return string(raw)
}

// NetworkInfo returns the info cache of an instance.
func (c *Conductor) NetworkInfo(uuid string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.caches[uuid]
}

// SetNetworkInfo changes the info cache of an instance.
func (c *Conductor) SetNetworkInfo(uuid, info string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.caches[uuid] = info
}

// VIFs returns how many VirtualInterface rows an instance has.
func (c *Conductor) VIFs(uuid string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, of := range c.vifs {
		if of == uuid {
			n++
		}
	}
	return n
}

// SetNode stores a compute node.
func (c *Conductor) SetNode(fields Fields) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[text(fields["uuid"])] = maps.Clone(fields)
}

// Node returns a copy of a compute node's fields; nil: there is none.
func (c *Conductor) Node(uuid string) Fields {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.nodes[uuid])
}

// AddService stores a service record.
func (c *Conductor) AddService(fields Fields) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.services = append(c.services, maps.Clone(fields))
}

// SetService changes fields of all service records.
func (c *Conductor) SetService(changes map[string]any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.services {
		for name, value := range changes {
			s[name] = Raw(value)
		}
	}
}

// AddMigration stores a migration.
func (c *Conductor) AddMigration(fields Fields) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.migrations = append(c.migrations, maps.Clone(fields))
}

// joined are the attributes that come only when they are asked for.
var joined = []string{"flavor", "old_flavor", "new_flavor", "metadata", "system_metadata", "migration_context", "tags", "keypairs", "ec2_ids", "fault"}

// instance makes the object of a row, with the attributes that were asked for.
func (c *Conductor) instance(uuid string, expected json.RawMessage) json.RawMessage {
	var attrs []string
	_ = json.Unmarshal(expected, &attrs) // null: none
	if slices.Contains(attrs, "flavor") {
		attrs = append(attrs, "old_flavor", "new_flavor")
	}
	fields := Fields{}
	for name, value := range c.instances[uuid] {
		if !slices.Contains(joined, name) || slices.Contains(attrs, name) {
			fields[name] = value
		}
	}
	for _, attr := range attrs {
		if _, ok := fields[attr]; !ok && attr != "info_cache" {
			fields[attr] = Raw(nil)
			if attr == "metadata" || attr == "system_metadata" {
				fields[attr] = Raw(map[string]any{})
			}
		}
	}
	if slices.Contains(attrs, "info_cache") {
		fields["info_cache"] = c.cache(uuid)
	}
	return Object("Instance", fields)
}

func (c *Conductor) cache(uuid string) json.RawMessage {
	return Object("InstanceInfoCache", Fields{"instance_uuid": Raw(uuid), "network_info": Raw(c.caches[uuid])})
}

// instancesWhere returns the instances that fit, in the order of their UUIDs.
func (c *Conductor) instancesWhere(expected json.RawMessage, fits func(Fields) bool) json.RawMessage {
	var objects []json.RawMessage
	for _, uuid := range slices.Sorted(maps.Keys(c.instances)) {
		if row := c.instances[uuid]; string(row["deleted"]) != "true" && fits(row) {
			objects = append(objects, c.instance(uuid, expected))
		}
	}
	return list("InstanceList", objects)
}
