package compute

import (
	"cmp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/capture"
)

// notification is one that was passed to the sender.
type notification struct {
	capture.Notification

	topics []string
}

// digests are those of what one operation told.
func digests(t testing.TB, told []notification) []capture.Digest {
	t.Helper()
	all := make([]capture.Notification, len(told))
	for i, n := range told {
		all[i] = n.Notification
	}
	return capture.Digests(t, all)
}

// capturedDigests are those of what a compute host told in a captured operation; host "" is the only one that told anything.
func capturedDigests(t testing.TB, operation, host string) []capture.Digest {
	t.Helper()
	of := capture.OfComputes(capture.Told(t, "zed", operation), testHost, otherHost)
	if host == "" {
		require.LessOrEqual(t, len(of), 1, "hosts that told of %s", operation)
		for _, told := range of {
			return capture.Digests(t, told)
		}
	}
	return capture.Digests(t, of[host])
}

// toldAs requires that what was told is, in both forms and in its order, what nova-compute told in a captured operation.
// ours are values that differ with reason, as "event field" → value: the capture's driver knows no paused guest, for one.
func (w *world) toldAs(operation string, ours map[string]any) {
	w.t.Helper()
	w.compareTold(operation, capturedDigests(w.t, operation, ""), digests(w.t, w.sender.told), ours)
}

// toldBy is toldAs for one of the hosts of a captured move, which was to tell the same in whatever order.
func (w *world) toldBy(operation, host string, ours map[string]any) {
	w.t.Helper()
	order := func(a, b capture.Digest) int { return cmp.Compare(a.Event, b.Event) }
	want, got := capturedDigests(w.t, operation, host), digests(w.t, w.sender.told)
	slices.SortFunc(want, order)
	slices.SortFunc(got, order)
	w.compareTold(operation, want, got, ours)
}

func (w *world) compareTold(operation string, want, got []capture.Digest, ours map[string]any) {
	w.t.Helper()
	for i := range want {
		_, event, _ := strings.Cut(want[i].Event, " ")
		for name := range want[i].Fields {
			if value, ok := ours[event+" "+name]; ok {
				want[i].Fields[name] = value
			}
		}
	}
	for _, n := range w.sender.told {
		versioned := strings.HasPrefix(n.PublisherID, "nova-compute:")
		require.Equal(w.t, versioned, len(n.topics) == 1, "topics of %s", n.EventType)
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		w.t.Errorf("%s (-captured +told):\n%s", operation, diff)
	}
	w.sender.clear()
}

// TestNotificationsOfOperations replays captured operations on one server, and compares what is told in both forms.
func TestNotificationsOfOperations(t *testing.T) {
	t.Parallel()
	w := built(t).both()
	w.neutron.addPort("own")
	w.accounts("root:x:0:0::/root:/bin/sh\n", "root:*:1::::::\n")
	for _, c := range []struct {
		operation, method, task string
		args                    map[string]any
		ours                    map[string]any
	}{
		{"pause", "pause_instance", "pausing", nil, map[string]any{"instance.pause.end power_state": "paused"}},
		{"unpause", "unpause_instance", "unpausing", nil, map[string]any{"instance.unpause.start power_state": "paused"}},
		{"suspend", "suspend_instance", "suspending", nil, map[string]any{"instance.suspend.end power_state": "suspended"}},
		{"resume", "resume_instance", "resuming", nil, map[string]any{"instance.resume.start power_state": "suspended"}},
		{"stop", "stop_instance", "powering-off", nil, nil},
		{"start", "start_instance", "powering-on", nil, nil},
		{"reboot-soft", "reboot_instance", "rebooting", map[string]any{"reboot_type": "SOFT"}, nil},
		{"reboot-hard", "reboot_instance", "rebooting_hard", map[string]any{"reboot_type": "HARD"}, nil},
		{"set-password", "set_admin_password", "updating_password", map[string]any{"new_pass": "s3cret"}, nil},
		{"console-log", "get_console_output", "", map[string]any{"tail_length": 10}, nil},
		{"server-diagnostics", "get_instance_diagnostics", "", nil, nil},
		{"inject-network-info", "inject_network_info", "", nil, nil},
		{"add-fixed-ip", "add_fixed_ip_to_instance", "", map[string]any{"network_id": networkID}, nil},
		{"interface-attach-net", "attach_interface", "", attachArgs(nil), nil},
		{"interface-attach-port", "attach_interface", "", attachArgs(map[string]any{"network_id": nil, "port_id": "own"}), nil},
		{"interface-detach-port", "detach_interface", "", map[string]any{"port_id": "own"}, nil},
		{"interface-detach-net", "detach_interface", "", map[string]any{"port_id": "port-1"}, nil},
		{"force-delete", "terminate_instance", "deleting", nil, nil},
	} {
		w.sender.clear()
		_, err := w.operate(c.method, c.task, c.args)
		require.NoError(t, err)
		w.toldAs(c.operation, c.ours)
	}
}

// TestNotificationsOfARefusal: the start is told as of any crash dump, then the exception.
func TestNotificationsOfARefusal(t *testing.T) {
	t.Parallel()
	w := built(t).both()
	w.sender.clear()
	_, err := w.operate("trigger_crash_dump", "", nil)
	require.Error(t, err)
	require.Equal(t, capturedDigests(t, "trigger-crash-dump", "")[:2], digests(t, w.sender.told[:2]))
	require.Equal(t, []string{"ERROR trigger_crash_dump", "ERROR compute.exception"}, w.sender.all()[2:])
	refused := capturedDigests(t, "hypervisor-uptime", "")
	got := digests(t, w.sender.told[2:])
	for i := range refused {
		refused[i].Event, got[i].Event = "", "" // of another method
		require.Equal(t, refused[i], got[i])
	}
}
