//go:build functional

package functional

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
)

// capturedRelease is the one that every operation was captured of.
const capturedRelease = "zed"

// capturedHosts are the two of the captures.
var capturedHosts = []string{"peer", "peer2"}

// listener hears what nova's services tell of one server.
type listener struct {
	t      *testing.T
	trace  *controlplane.Trace
	server string
	hosts  []string
	heard  int            // messages that belong to operations before
	last   capture.Change // what those led to: a save may follow that changes nothing of it
}

// listen begins to hear; the server may come later.
func listen(t *testing.T, hosts ...string) *listener {
	t.Helper()
	trace, err := shared.Plane.Trace(within(t, time.Minute))
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		_, err := trace.Stop(ctx)
		require.NoError(t, err)
	})
	return &listener{t: t, trace: trace, hosts: hosts}
}

// told is one operation: the states of the server, from the notifications of its updates, and of each compute host that took part what it told.
type told struct {
	Changes []capture.Change
	Hosts   [][]capture.Digest
}

// same requires of an operation what was captured of it with nova-compute: that the server goes through the same states, that the compute
// hosts tell the same in both forms and in the same order, and that the server's history has the same events, all successful. ours are values
// that differ with reason, as "event field" → value.
func (l *listener) same(operation string, ours map[string]any, do func()) {
	l.t.Helper()
	recorded := capture.Told(l.t, capturedRelease, operation)
	want := l.digest(recorded, recorded, capturedHosts)
	want.Changes = l.since(withPendingUpload(want.Changes))
	for _, host := range want.Hosts {
		for _, d := range host {
			for name := range d.Fields {
				if value, ok := ours[d.Event+" "+name]; ok {
					d.Fields[name] = value
				}
			}
		}
	}
	do()
	got, all := told{Changes: l.since(nil)}, l.heard
	ctx := within(l.t, 30*time.Second)
	err := cloud.Poll(ctx, 200*time.Millisecond, "all notifications of "+operation, func() (bool, error) {
		messages, err := l.trace.Seen()
		if err != nil {
			return false, err
		}
		var heard []capture.Notification
		for _, m := range messages[l.heard:] {
			n := capture.Notification{Priority: m.Priority, PublisherID: m.Publisher, EventType: m.Event, Payload: m.Payload}
			if m.Event != "" && n.Instance(l.t) == l.server {
				heard = append(heard, n)
			}
		}
		all, got = len(messages), l.digest(heard, recorded, l.hosts)
		got.Changes = l.since(got.Changes)
		return got.size() >= want.size(), nil
	})
	l.heard = all
	l.last = got.Changes[len(got.Changes)-1]
	l.sameHistory(operation)
	if diff := gocmp.Diff(want, got); diff != "" || err != nil {
		l.t.Errorf("%s: %v (-captured +told):\n%s", operation, err, diff)
	}
}

// since puts before changes what the operations before led to.
func (l *listener) since(changes []capture.Change) []capture.Change {
	return slices.Compact(append([]capture.Change{l.last}, changes...))
}

// sameHistory looks at the newest action of the server.
func (l *listener) sameHistory(operation string) {
	l.t.Helper()
	var want []actionEvent
	for _, name := range capture.ActionEvents(l.t, capturedRelease, operation) {
		want = append(want, actionEvent{Event: name, Result: "Success"})
	}
	if len(want) == 0 {
		return
	}
	var list struct {
		InstanceActions []struct{ Action string }
	}
	require.NoError(l.t, shared.Admin.Do(within(l.t, 10*time.Second), http.MethodGet, cloud.Compute, "/servers/"+l.server+"/os-instance-actions", nil, &list))
	require.NotEmpty(l.t, list.InstanceActions)
	var got []actionEvent
	for _, e := range lastAction(l.t, l.server, list.InstanceActions[0].Action) {
		if strings.HasPrefix(e.Event, "compute_") { // others are the conductor's
			require.Contains(l.t, l.hosts, e.Host, e.Event)
			got = append(got, actionEvent{Event: e.Event, Result: e.Result})
		}
	}
	require.ElementsMatch(l.t, want, got, "history of %s", operation)
}

func (t *told) size() int {
	size := len(t.Changes)
	for _, host := range t.Hosts {
		size += len(host)
	}
	return size
}

// digest leaves out what in the captured operation an API or a conductor told: in the legacy form they call themselves compute, too, and may
// be on a compute host.
func (l *listener) digest(heard, recorded []capture.Notification, hosts []string) told {
	l.t.Helper()
	byComputes := map[string]bool{}
	for _, of := range capture.OfComputes(recorded, capturedHosts...) {
		for _, n := range of {
			byComputes[n.EventType] = true
		}
	}
	all := told{Changes: capture.Changes(l.t, heard)}
	for _, of := range capture.OfComputes(heard, hosts...) {
		of = slices.DeleteFunc(of, func(n capture.Notification) bool { return !byComputes[n.EventType] })
		if len(of) > 0 {
			all.Hosts = append(all.Hosts, capture.Digests(l.t, of))
		}
	}
	if shared.Plane.Release.Name != capturedRelease { // which has its own versions of payloads
		all.Hosts = nil
	}
	slices.SortFunc(all.Hosts, func(a, b []capture.Digest) int { return cmp.Compare(a[0].Event, b[0].Event) })
	return all
}

// withPendingUpload adds what the driver of the captures, nova's fake one, leaves out: images are prepared before they are uploaded
// (nova/virt/libvirt/driver.py:snapshot).
func withPendingUpload(changes []capture.Change) []capture.Change {
	const uploading = "image_uploading"
	var all []capture.Change
	for _, c := range changes {
		if of, ok := strings.CutSuffix(c.TaskState, uploading); ok {
			all = append(all, capture.Change{VMState: c.VMState, TaskState: of + "image_pending_upload"})
		}
		all = append(all, c)
	}
	return all
}

// fixedIP adds or removes an address, which the API offers up to microversion 2.43.
func fixedIP(t *testing.T, id, action string, args map[string]string) {
	t.Helper()
	body := map[string]any{action: args}
	require.NoError(t, shared.Admin.DoAt(within(t, 20*time.Second), "2.43", http.MethodPost, cloud.Compute, "/servers/"+id+"/action", body, nil))
}

// addresses are those of a server, as nova has them.
func addresses(t *testing.T, id string) []string {
	t.Helper()
	server, err := shared.Admin.Server(within(t, 20*time.Second), id)
	require.NoError(t, err)
	var all []string
	for _, network := range server.Addresses {
		for _, a := range network {
			all = append(all, a.Addr)
		}
	}
	return all
}

// TestToldAsNovaCompute does captured operations of one host.
func TestToldAsNovaCompute(t *testing.T) {
	own := port(t, "told-own")
	t.Cleanup(func() { deleteImages(t, "told", "told-backup") })
	l := listen(t, shared.Host)
	l.same("server-create", nil, func() { l.server = boot(t, cloud.NewServer{}).ID })
	for _, c := range []struct {
		operation, action string
		args              any
		status            string
		ours              map[string]any // the fake driver knows neither frozen guests nor guests that a rescue starts
	}{
		{"pause", "pause", nil, "PAUSED", map[string]any{"INFO instance.pause.end power_state": "paused"}},
		{"unpause", "unpause", nil, "ACTIVE", map[string]any{"INFO instance.unpause.start power_state": "paused"}},
		{"suspend", "suspend", nil, "SUSPENDED", map[string]any{"INFO instance.suspend.end power_state": "suspended"}},
		{"resume", "resume", nil, "ACTIVE", map[string]any{"INFO instance.resume.start power_state": "suspended"}},
		{"stop", "os-stop", nil, "SHUTOFF", nil},
		{"start", "os-start", nil, "ACTIVE", nil},
		{"reboot-soft", "reboot", map[string]string{"type": "SOFT"}, "ACTIVE", nil},
		{"reboot-hard", "reboot", map[string]string{"type": "HARD"}, "ACTIVE", nil},
		{"lock", "lock", nil, "ACTIVE", nil},
		{"unlock", "unlock", nil, "ACTIVE", nil},
		{"set-password", "changePassword", map[string]string{"adminPass": "s3cret"}, "ACTIVE", nil},
		{"console-log", "os-getConsoleOutput", map[string]int{"length": 10}, "ACTIVE", nil},
		{"inject-network-info", "injectNetworkInfo", nil, "ACTIVE", nil},
		{"rescue", "rescue", nil, "RESCUE", map[string]any{"INFO instance.rescue.end power_state": "running"}},
		{"unrescue", "unrescue", nil, "ACTIVE", map[string]any{"INFO instance.unrescue.start power_state": "running"}},
		{"rebuild", "rebuild", map[string]string{"imageRef": shared.Busybox}, "ACTIVE", nil},
		{"image-create", "createImage", map[string]string{"name": "told"}, "ACTIVE", nil},
		{"backup", "createBackup", map[string]any{"name": "told-backup", "backup_type": "daily", "rotation": 1}, "ACTIVE", nil},
		{"shelve", "shelve", nil, "SHELVED_OFFLOADED", nil},
	} {
		l.same(c.operation, c.ours, func() { act(t, l.server, c.action, c.args, c.status) })
	}
	l.same("unshelve", nil, func() { unshelveHere(t, l.server) })
	l.same("server-diagnostics", nil, func() {
		require.NoError(t, shared.Admin.Do(within(t, 20*time.Second), http.MethodGet, cloud.Compute, "/servers/"+l.server+"/diagnostics", nil, nil))
	})
	second := ""
	l.same("interface-attach-net", nil, func() {
		added, err := attach(t, l.server, map[string]any{"net_id": shared.Network})
		require.NoError(t, err)
		second = added.PortID
	})
	l.same("interface-attach-port", nil, func() {
		_, err := attach(t, l.server, map[string]any{"port_id": own})
		require.NoError(t, err)
	})
	l.same("interface-detach-port", nil, func() { detach(t, l.server, own) })
	l.same("interface-detach-net", nil, func() { detach(t, l.server, second) })
	before := addresses(t, l.server)
	l.same("add-fixed-ip", nil, func() { fixedIP(t, l.server, "addFixedIp", map[string]string{"networkId": shared.Network}) })
	added := slices.DeleteFunc(addresses(t, l.server), func(address string) bool { return slices.Contains(before, address) })
	require.Len(t, added, 1)
	l.same("remove-fixed-ip", nil, func() { fixedIP(t, l.server, "removeFixedIp", map[string]string{"address": added[0]}) })
	require.Equal(t, before, addresses(t, l.server))
	l.same("server-delete", nil, func() { remove(t, l.server) })
}

// TestMovesToldAsNovaCompute does captured moves between two hosts.
func TestMovesToldAsNovaCompute(t *testing.T) {
	p := twoHosts(t)
	server := p.boot(cloud.NewServer{Networks: "none"}).ID
	l := listen(t, p.here.Host, p.there.Host)
	l.server, l.last = server, capture.Change{VMState: "active"}
	disable(t, p.here.Host)
	l.same("resize", nil, func() { p.act(l.server, "resize", map[string]string{"flavorRef": p.bigger}, "VERIFY_RESIZE") })
	l.same("resize-revert", nil, func() { p.act(l.server, "revertResize", nil, "ACTIVE") })
	l.same("cold-migrate", nil, func() { p.act(l.server, "migrate", nil, "VERIFY_RESIZE") })
	l.same("cold-migrate-confirm", nil, func() { p.act(l.server, "confirmResize", nil, "ACTIVE") })
}
