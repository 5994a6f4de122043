//go:build functional

package functional

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// actionEvent is one event of the history of a server.
type actionEvent struct{ Event, Result, Host string }

// lastAction returns the newest action of that name in a server's history, with what computes did for it, once that has ended.
func lastAction(t *testing.T, id, name string) []actionEvent {
	t.Helper()
	ctx := within(t, 20*time.Second)
	var events []actionEvent
	err := cloud.Poll(ctx, 200*time.Millisecond, "the end of the action "+name, func() (bool, error) {
		var list struct {
			InstanceActions []struct {
				Action    string
				RequestID string `json:"request_id"`
			} `json:"instanceActions"`
		}
		if err := shared.Admin.Do(ctx, "GET", cloud.Compute, "/servers/"+id+"/os-instance-actions", nil, &list); err != nil {
			return false, err
		}
		for _, a := range list.InstanceActions { // the newest first
			if a.Action != name {
				continue
			}
			var one struct {
				InstanceAction struct{ Events []actionEvent } `json:"instanceAction"`
			}
			path := fmt.Sprintf("/servers/%s/os-instance-actions/%s", id, url.PathEscape(a.RequestID))
			if err := shared.Admin.Do(ctx, "GET", cloud.Compute, path, nil, &one); err != nil {
				return false, err
			}
			events = one.InstanceAction.Events
			for _, e := range events {
				if e.Result == "" {
					return false, nil
				}
			}
			return len(events) > 0, nil
		}
		return false, nil
	})
	require.NoError(t, err)
	return events
}

// requireAction checks that the newest action of a name ended well, by one event of this host's agent.
func requireAction(t *testing.T, id, name, event string) {
	t.Helper()
	require.Equal(t, []actionEvent{{Event: event, Result: "Success", Host: shared.Host}}, lastAction(t, id, name))
}

// restartAgent ends the agent and starts it again.
func restartAgent(t *testing.T, how syscall.Signal) {
	t.Helper()
	if how == syscall.SIGKILL {
		killAgent(t)
	} else {
		require.NoError(t, shared.Agent.Signal(within(t, 30*time.Second), how))
	}
	startAgent(t)
}

var socketOwner = regexp.MustCompile(`pid=(\d+),`)

// listening is the port of consoles that a process listens on, "" if there is none.
func listening(t *testing.T, pid int) string {
	t.Helper()
	out, err := exec.CommandContext(within(t, 10*time.Second), "ss", "-Hltnp", "sport >= :10000 and sport <= :20000").Output()
	require.NoError(t, err)
	for _, line := range regexp.MustCompile(`(?m)^.*$`).FindAllString(string(out), -1) {
		if m := socketOwner.FindStringSubmatch(line); m != nil && m[1] == strconv.Itoa(pid) {
			return regexp.MustCompile(`:(\d{5})\s`).FindStringSubmatch(line)[1]
		}
	}
	return ""
}

// TestSuspendAndResume: the guest stands still, over a restart of the agent, and goes on where it was.
func TestSuspendAndResume(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	first := booted(t, server.ID)
	inside(t, server.ID, "sh", "-c", "(while :; do n=$((n+1)); echo $n > /count; sleep 0.05; done) > /dev/null 2>&1 &")
	eventually(t, 10*time.Second, "a guest that counts", func(ctx context.Context) (bool, error) {
		out, err := shared.Agent.Exec(ctx, server.ID, "cat", "/count")
		return err == nil && out != "", nil
	})

	act(t, server.ID, "suspend", nil, "SUSPENDED")
	requireAction(t, server.ID, "suspend", "compute_suspend_instance")
	state := func() cloud.Server {
		now, err := shared.Admin.Server(within(t, 10*time.Second), server.ID)
		require.NoError(t, err)
		return now
	}
	require.Equal(t, 7, state().PowerState)
	_, err := shared.Agent.Exec(within(t, 10*time.Second), server.ID, "true")
	require.Error(t, err, "nothing runs in it")
	require.Error(t, shared.Admin.Action(within(t, 10*time.Second), server.ID, "unpause", nil, nil), "it is not PAUSED")

	restartAgent(t, syscall.SIGKILL)
	require.Equal(t, "SUSPENDED", state().Status)
	require.Equal(t, 7, state().PowerState)

	act(t, server.ID, "resume", nil, "ACTIVE")
	requireAction(t, server.ID, "resume", "compute_resume_instance")
	require.Equal(t, 1, state().PowerState)
	require.Equal(t, first, booted(t, server.ID), "it was not booted again")
	before := inside(t, server.ID, "cat", "/count")
	eventually(t, 10*time.Second, "a guest that goes on counting", func(ctx context.Context) (bool, error) {
		out, err := shared.Agent.Exec(ctx, server.ID, "cat", "/count")
		return err == nil && out != "" && out != before+"\n", nil
	})
	answers(t, server)

	act(t, server.ID, "pause", nil, "PAUSED")
	require.Equal(t, 3, state().PowerState)
	act(t, server.ID, "unpause", nil, "ACTIVE")

	// A reboot of the host: the guest is gone while no agent looks, and is started by resume.
	act(t, server.ID, "suspend", nil, "SUSPENDED")
	loseGuest(t, server.ID)
	require.Equal(t, "SUSPENDED", state().Status)
	act(t, server.ID, "resume", nil, "ACTIVE")
	answers(t, server)
	require.NotEqual(t, first, booted(t, server.ID))

	act(t, server.ID, "suspend", nil, "SUSPENDED")
	act(t, server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	answers(t, server)
	act(t, server.ID, "suspend", nil, "SUSPENDED") // and deleted so
}

// loseGuest ends the agent and the guest, as a reboot of the host does, and starts the agent.
func loseGuest(t *testing.T, id string) {
	t.Helper()
	pid := guestPID(t, id)
	require.NoError(t, shared.Agent.Signal(within(t, 30*time.Second), syscall.SIGTERM))
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	thaw(t, pid) // a frozen process does not take a signal
	eventually(t, 10*time.Second, "the end of the guest", func(context.Context) (bool, error) {
		return syscall.Kill(pid, 0) != nil, nil
	})
	startAgent(t)
}

// thaw lets the control group of a process go on, whichever version the host has.
func thaw(t *testing.T, pid int) {
	t.Helper()
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return // it has ended
	}
	require.NoError(t, err)
	group := regexp.MustCompile(`/lxc\.payload\.[^/\n]+`).FindString(string(groups))
	for file, word := range map[string]string{
		"/sys/fs/cgroup/freezer" + group + "/freezer.state": "THAWED", "/sys/fs/cgroup" + group + "/cgroup.freeze": "0",
	} {
		if _, err := os.Stat(file); err == nil {
			require.NoError(t, os.WriteFile(file, []byte(word), 0))
		}
	}
}

// guestPID is the process of a guest's init, which its monitor's cgroup leads to.
func guestPID(t *testing.T, id string) int {
	t.Helper()
	server, err := shared.Admin.Server(within(t, 10*time.Second), id)
	require.NoError(t, err)
	// A frozen guest cannot be asked, so the host is: the title of its monitor ends with the name.
	out, err := exec.CommandContext(within(t, 10*time.Second), "pgrep", "-f", `^\[lxc monitor\] .*/agent-under-test[^ ]* `+regexp.QuoteMeta(server.InstanceName)+"$").Output()
	require.NoError(t, err)
	children, err := exec.CommandContext(within(t, 10*time.Second), "pgrep", "-o", "-P", string(regexp.MustCompile(`\d+`).Find(out))).Output()
	require.NoError(t, err)
	pid, err := strconv.Atoi(string(regexp.MustCompile(`\d+`).Find(children)))
	require.NoError(t, err)
	return pid
}

// TestLockAndRename: both are nova's alone, and the guest's name stays.
func TestLockAndRename(t *testing.T) {
	server := boot(t, cloud.NewServer{Name: "before", Networks: "none"})
	hostname := inside(t, server.ID, "hostname")
	require.NoError(t, shared.Admin.Action(within(t, 10*time.Second), server.ID, "lock", nil, nil))
	act(t, server.ID, "os-stop", nil, "SHUTOFF") // an administrator may
	act(t, server.ID, "os-start", nil, "ACTIVE")
	require.NoError(t, shared.Admin.Action(within(t, 10*time.Second), server.ID, "unlock", nil, nil))
	err := shared.Admin.Do(within(t, 10*time.Second), "PUT", cloud.Compute, "/servers/"+server.ID, map[string]any{"server": map[string]string{"name": "after"}}, nil)
	require.NoError(t, err)
	act(t, server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	require.Equal(t, hostname, inside(t, server.ID, "hostname"))
	now, err := shared.Admin.Server(within(t, 10*time.Second), server.ID)
	require.NoError(t, err)
	require.Equal(t, "after", now.Name)
}

func TestSetPassword(t *testing.T) {
	server := boot(t, cloud.NewServer{Image: shared.Debian, Flavor: shared.Small, Networks: "none"})
	before := inside(t, server.ID, "stat", "-c", "%u %g %a", "/etc/shadow")
	require.NoError(t, shared.Admin.Action(within(t, 60*time.Second), server.ID, "changePassword", map[string]string{"adminPass": "fÜr root: $1"}, nil))
	requireAction(t, server.ID, "changePassword", "compute_set_admin_password")
	now := statusIn(t, 10*time.Second, server.ID, "ACTIVE")
	require.Empty(t, now.TaskState)
	require.Equal(t, before, inside(t, server.ID, "stat", "-c", "%u %g %a", "/etc/shadow"))
	// The guest's own libc says whether it is the password.
	check := `use strict; my @f = getpwnam($ARGV[0]); exit(crypt($ARGV[1], $f[1]) eq $f[1] ? 0 : 1)`
	inside(t, server.ID, "perl", "-e", check, "root", "fÜr root: $1")
	_, err := shared.Agent.Exec(within(t, 10*time.Second), server.ID, "perl", "-e", check, "root", "another")
	require.Error(t, err)
	inside(t, server.ID, "pwck", "-r", "-q")
	logged, _, err := shared.Agent.Log(0)
	require.NoError(t, err)
	require.NotContains(t, logged, "fÜr root")

	act(t, server.ID, "pause", nil, "PAUSED")
	err = shared.Admin.Action(within(t, 60*time.Second), server.ID, "changePassword", map[string]string{"adminPass": "x"}, nil)
	require.True(t, cloud.IsStatus(err, 409), "%v", err)
	statusIn(t, 10*time.Second, server.ID, "PAUSED")
	act(t, server.ID, "unpause", nil, "ACTIVE")

	inside(t, server.ID, "mv", "/etc/passwd", "/etc/passwd.away")
	err = shared.Admin.Action(within(t, 60*time.Second), server.ID, "changePassword", map[string]string{"adminPass": "x"}, nil)
	require.True(t, cloud.IsStatus(err, 409), "%v", err)
	require.ErrorContains(t, err, "no /etc/passwd")
	statusIn(t, 10*time.Second, server.ID, "ACTIVE")
}

func TestDiagnostics(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	var now struct {
		State, Driver, Hypervisor string
		HypervisorOS              string `json:"hypervisor_os"`
		Uptime                    int
		NumCPUs                   int                         `json:"num_cpus"`
		NumNICs                   int                         `json:"num_nics"`
		NumDisks                  int                         `json:"num_disks"`
		MemoryDetails             struct{ Maximum, Used int } `json:"memory_details"`
		CPUDetails                []struct{ ID, Time int64 }  `json:"cpu_details"`
		NICDetails                []struct {
			MAC       string `json:"mac_address"`
			RxOctets  int64  `json:"rx_octets"`
			TxPackets int64  `json:"tx_packets"`
		} `json:"nic_details"`
	}
	path := "/servers/" + server.ID + "/diagnostics"
	require.NoError(t, shared.Admin.Do(within(t, 20*time.Second), "GET", cloud.Compute, path, nil, &now))
	t.Logf("%+v", now)
	require.Equal(t, []string{"running", "libvirt", "lxc", "linux"}, []string{now.State, now.Driver, now.Hypervisor, now.HypervisorOS})
	require.Equal(t, []int{1, 1, 1}, []int{now.NumCPUs, now.NumNICs, now.NumDisks})
	require.Positive(t, now.CPUDetails[0].Time)
	require.Positive(t, now.MemoryDetails.Used+1)
	require.Equal(t, inside(t, server.ID, "cat", "/sys/class/net/eth0/address"), now.NICDetails[0].MAC)
	received, err := strconv.ParseInt(inside(t, server.ID, "cat", "/sys/class/net/eth0/statistics/rx_bytes"), 10, 64)
	require.NoError(t, err)
	require.Positive(t, now.NICDetails[0].RxOctets)
	require.LessOrEqual(t, now.NICDetails[0].RxOctets, received, "in the guest's terms")

	legacy := map[string]any{}
	require.NoError(t, shared.Admin.DoAt(within(t, 20*time.Second), "compute 2.1", "GET", cloud.Compute, path, nil, &legacy))
	t.Logf("%v", legacy)
	require.Contains(t, legacy, "cpu0_time")
	require.Contains(t, legacy, "memory")

	act(t, server.ID, "os-stop", nil, "SHUTOFF")
	for _, version := range []string{"compute 2.1", "compute 2.48"} {
		err := shared.Admin.DoAt(within(t, 20*time.Second), version, "GET", cloud.Compute, path, nil, nil)
		require.True(t, cloud.IsStatus(err, 409), "%v", err)
	}
}

// TestHostOperations are what an operator may ask of the host: answered, or refused as the API expects.
func TestHostOperations(t *testing.T) {
	for _, action := range []string{"reboot", "shutdown", "startup"} {
		err := shared.Admin.DoAt(within(t, 20*time.Second), "compute 2.1", "GET", cloud.Compute, "/os-hosts/"+shared.Host+"/"+action, nil, nil)
		require.True(t, cloud.IsStatus(err, 501), "%s: %v", action, err)
	}
	err := shared.Admin.DoAt(within(t, 20*time.Second), "compute 2.1", "PUT", cloud.Compute, "/os-hosts/"+shared.Host, map[string]string{"maintenance_mode": "enable"}, nil)
	require.True(t, cloud.IsStatus(err, 501), "%v", err)
	hypervisors, err := shared.Admin.Hypervisors(within(t, 20*time.Second))
	require.NoError(t, err)
	for _, h := range hypervisors {
		if h.Hostname != shared.Host {
			continue
		}
		var out struct{ Hypervisor struct{ Uptime string } }
		require.NoError(t, shared.Admin.Do(within(t, 20*time.Second), "GET", cloud.Compute, "/os-hypervisors/"+h.ID+"/uptime", nil, &out))
		require.Contains(t, out.Hypervisor.Uptime, "load average")
	}

	server := boot(t, cloud.NewServer{Networks: "none"})
	err = shared.Admin.Action(within(t, 20*time.Second), server.ID, "trigger_crash_dump", nil, nil)
	require.NoError(t, err, "the API does not wait")
	events := lastAction(t, server.ID, "trigger_crash_dump")
	require.Equal(t, []actionEvent{{Event: "compute_trigger_crash_dump", Result: "Error", Host: shared.Host}}, events)
	require.Equal(t, "ACTIVE", statusIn(t, 10*time.Second, server.ID, "ACTIVE").Status)
}

// TestGuestsResumeAfterAHostReboot: with resume_guests_state_on_host_boot those that ran are started, and no others.
func TestGuestsResumeAfterAHostReboot(t *testing.T) {
	withOptions(t, shared, "[DEFAULT]\nresume_guests_state_on_host_boot = true\n")
	ran := boot(t, cloud.NewServer{Name: "ran", Networks: "none"})
	stopped := boot(t, cloud.NewServer{Name: "stopped", Networks: "none"})
	first := booted(t, ran.ID)
	act(t, stopped.ID, "os-stop", nil, "SHUTOFF")
	loseGuest(t, ran.ID)
	eventually(t, 20*time.Second, "a guest that runs again", func(ctx context.Context) (bool, error) {
		_, err := shared.Agent.Exec(ctx, ran.ID, "true")
		return err == nil, nil
	})
	require.NotEqual(t, first, booted(t, ran.ID))
	require.Equal(t, "ACTIVE", statusIn(t, 10*time.Second, ran.ID, "ACTIVE").Status)
	require.Equal(t, "SHUTOFF", statusIn(t, 10*time.Second, stopped.ID, "SHUTOFF").Status)
}
