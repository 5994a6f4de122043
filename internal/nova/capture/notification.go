package capture

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// Notification is one that a service of nova sent.
type Notification struct {
	Priority, PublisherID, EventType string
	Payload                          json.RawMessage
}

// Digest is what an operation decides of a notification, and nothing of the server that it was made on.
type Digest struct {
	Event     string // priority and event type
	Publisher string // "compute" or "nova-compute": which form it has
	Payload   string // class and version, or "legacy"
	// Fields are those of the payload: the value of those that an operation changes, of the others whether they are null.
	Fields map[string]any
}

// Change is a state that a server came to: its vm_state, and its task_state or "".
type Change struct{ VMState, TaskState string }

// changing are the fields whose value is compared.
var changing = []string{"state", "state_description", "task_state", "power_state", "progress", "message", "fault", "block_devices"}

// incidental are fields that depend on the server's history and not on the operation.
var incidental = []string{"updated_at", "metadata", "key_name", "display_description", "availability_zone"}

// ActionEvents are the names of what computes began in an operation, for the history of the server, in order.
func ActionEvents(t testing.TB, release, operation string) []string {
	t.Helper()
	var names []string
	for _, m := range Operation(t, release, operation) {
		var method string
		var args [2]string // the instance's UUID, the event
		if json.Unmarshal(m.Args["objmethod"], &method) != nil || method != "event_start" {
			continue
		}
		if err := json.Unmarshal(m.Args["args"], &args); err != nil {
			t.Fatalf("%s line %d: %v", operation, m.Line, err)
		}
		names = append(names, args[1])
	}
	return names
}

// Told are the notifications of an operation on a captured server, all that services of nova sent.
func Told(t testing.TB, release, operation string) []Notification {
	t.Helper()
	var told []Notification
	for _, m := range Operation(t, release, operation) {
		if m.EventType != "" {
			told = append(told, Notification{m.Priority, m.PublisherID, m.EventType, m.Payload})
		}
	}
	return told
}

// OfComputes gives those that compute hosts sent, by host; updates of the instance are the conductor's.
func OfComputes(told []Notification, hosts ...string) map[string][]Notification {
	of := map[string][]Notification{}
	for _, n := range told {
		if host := n.host(); slices.Contains(hosts, host) && !n.isUpdate() {
			of[host] = append(of[host], n)
		}
	}
	return of
}

// host is the publisher's; in the legacy form a conductor and an API call themselves compute, too.
func (n *Notification) host() string {
	_, host, _ := strings.Cut(strings.Replace(n.PublisherID, "compute.", "nova-compute:", 1), "nova-compute:")
	return host
}

func (n *Notification) isUpdate() bool { return strings.HasSuffix(n.EventType, "instance.update") }

// Digests are those of what one host told of one operation, in its order.
func Digests(t testing.TB, told []Notification) []Digest {
	t.Helper()
	var all []Digest
	first := -1
	for i := range told {
		d := told[i].digest(t)
		if addresses, ok := d.Fields["ip_addresses"].(int); ok {
			if first < 0 {
				first = addresses
			}
			d.Fields["ip_addresses"] = map[int]string{-1: "fewer", 0: "as before", 1: "more"}[cmp.Compare(addresses, first)]
		}
		all = append(all, d)
	}
	return all
}

func (n *Notification) digest(t testing.TB) Digest {
	t.Helper()
	publisher, _, _ := strings.Cut(strings.ReplaceAll(n.PublisherID, "compute.", "compute:"), ":")
	d := Digest{Event: n.Priority + " " + n.EventType, Publisher: publisher, Payload: "legacy", Fields: map[string]any{}}
	class, all := n.fields(t)
	if class != "" {
		d.Payload = class
	}
	for name, value := range all {
		switch {
		case slices.Contains(changing, name):
			d.Fields[name] = value
		case name == "ip_addresses":
			list, _ := value.([]any)
			d.Fields[name] = len(list)
		case slices.Contains(incidental, name):
			d.Fields[name] = "any"
		default:
			d.Fields[name] = value != nil
		}
	}
	return d
}

// fields are the payload's; class and version are "" in the legacy form.
func (n *Notification) fields(t testing.TB) (class string, fields map[string]any) {
	t.Helper()
	if err := json.Unmarshal(n.Payload, &fields); err != nil {
		t.Fatalf("payload of %s: %v", n.EventType, err)
	}
	if name, ok := fields["nova_object.name"].(string); ok {
		version, _ := fields["nova_object.version"].(string)
		class = name + " " + version
		fields, _ = fields["nova_object.data"].(map[string]any)
	}
	return class, fields
}

// Instance is the UUID of the instance that a notification is about, "" if it is about none.
func (n *Notification) Instance(t testing.TB) string {
	t.Helper()
	_, fields := n.fields(t)
	for _, name := range []string{"instance_id", "uuid", "instance_uuid"} {
		if id, ok := fields[name].(string); ok {
			return id
		}
	}
	return ""
}

// Changes are the states that a server went through in an operation, the first of them what the API made of it.
func Changes(t testing.TB, told []Notification) []Change {
	t.Helper()
	var changes []Change
	for i := range told {
		if told[i].EventType != "compute.instance.update" {
			continue
		}
		_, fields := told[i].fields(t)
		state, _ := fields["state"].(string)
		task, _ := fields["new_task_state"].(string)
		changes = append(changes, Change{state, task})
	}
	return slices.Compact(changes)
}
