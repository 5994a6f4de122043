//go:build functional

package functional

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/host"
)

// attached is what the API answers about an interface.
type attached struct {
	PortID string `json:"port_id"`
	NetID  string `json:"net_id"`
	MAC    string `json:"mac_addr"`
	Tag    string `json:"tag"`
	IPs    []struct {
		Address string `json:"ip_address"`
	} `json:"fixed_ips"`
}

// attach asks for an interface; more are the keys of the request.
func attach(t *testing.T, server string, more map[string]any) (attached, error) {
	t.Helper()
	var answer struct{ InterfaceAttachment attached }
	began := time.Now()
	err := shared.Admin.Do(within(t, time.Minute), http.MethodPost, cloud.Compute, "/servers/"+server+"/os-interface",
		map[string]any{"interfaceAttachment": more}, &answer)
	t.Logf("attach: %.1f s", time.Since(began).Seconds())
	return answer.InterfaceAttachment, err
}

// detach takes an interface away and waits until the server shows it no more.
func detach(t *testing.T, server, port string) {
	t.Helper()
	path := "/servers/" + server + "/os-interface"
	require.NoError(t, shared.Admin.Do(within(t, time.Minute), http.MethodDelete, cloud.Compute, path+"/"+port, nil, nil))
	eventually(t, 30*time.Second, "the interface to go", func(ctx context.Context) (bool, error) {
		var answer struct{ InterfaceAttachments []attached }
		if err := shared.Admin.Do(ctx, http.MethodGet, cloud.Compute, path, nil, &answer); err != nil {
			return false, err
		}
		for _, i := range answer.InterfaceAttachments {
			if i.PortID == port {
				return false, nil
			}
		}
		_, err := os.Lstat("/sys/class/net/" + tapOf(port))
		return os.IsNotExist(err) && eventFinished(t, server, "detach_interface"), nil
	})
}

// tapOf is the host end of a port's pair.
func tapOf(port string) string { return ("tap" + port)[:14] }

// action is an entry of a server's history.
type action struct {
	Action     string
	RequestID  string `json:"request_id"`
	FinishedAt string
	Events     []struct {
		Event     string
		Result    string
		Traceback string
	}
}

func actionsOf(t *testing.T, server string) []action {
	t.Helper()
	var answer struct{ InstanceActions []action }
	require.NoError(t, shared.Admin.Do(within(t, time.Minute), http.MethodGet, cloud.Compute, "/servers/"+server+"/os-instance-actions", nil, &answer))
	return answer.InstanceActions
}

// eventFinished tells whether the newest action of a kind has ended, and that it ended well.
func eventFinished(t *testing.T, server, name string) bool {
	t.Helper()
	for _, a := range actionsOf(t, server) { // newest first
		if a.Action != name {
			continue
		}
		var answer struct{ InstanceAction action }
		path := "/servers/" + server + "/os-instance-actions/" + a.RequestID
		require.NoError(t, shared.Admin.Do(within(t, time.Minute), http.MethodGet, cloud.Compute, path, nil, &answer))
		for _, e := range answer.InstanceAction.Events {
			if e.Event == "compute_"+name && e.Result != "" {
				require.Equal(t, "Success", e.Result, e.Traceback)
				return true
			}
		}
		return false
	}
	return false
}

// listInterfaces is what the guest does for interfaces.
const listInterfaces = "cd /sys/class/net; for i in eth*; do echo $i $(cat $i/address) $(cat $i/operstate); done"

// interfaces are the guest's, without lo, as "name mac state", once all are up. The kernel says that a moment later than they are.
func interfaces(t *testing.T, server string) []string {
	t.Helper()
	return waitInterfaces(t, server, "interfaces that are up", func(now []string) bool {
		return !slices.ContainsFunc(now, func(line string) bool { return !strings.HasSuffix(line, " up") })
	})
}

// hasInterfaces waits until the guest has them, as interfaces tells.
func hasInterfaces(t *testing.T, server string, want []string) {
	t.Helper()
	waitInterfaces(t, server, strings.Join(want, ", "), func(now []string) bool { return slices.Equal(now, want) })
}

func waitInterfaces(t *testing.T, server, what string, check func(now []string) bool) (now []string) {
	t.Helper()
	ctx := within(t, 10*time.Second)
	err := cloud.Poll(ctx, 200*time.Millisecond, what, func() (bool, error) {
		out, err := shared.Agent.Exec(ctx, server, "sh", "-c", listInterfaces)
		now = strings.Split(strings.TrimSpace(out), "\n")
		return check(now), err
	})
	require.NoError(t, err, "the guest has %v", now)
	return now
}

// usable has the guest ask for an address on an interface, and reaches it there. Its other interface on the same network, which would
// answer instead, is down meanwhile.
func usable(t *testing.T, server, name, address string) {
	t.Helper()
	inside(t, server, "ip", "link", "set", "eth0", "down")
	inside(t, server, "udhcpc", "-n", "-q", "-t", "30", "-T", "2", "-i", name, "-s", "/usr/share/udhcpc/default.script")
	require.Contains(t, inside(t, server, "ip", "-4", "addr", "show", "dev", name), address)
	eventually(t, 30*time.Second, "answer to ping at "+address, func(ctx context.Context) (bool, error) {
		return host.Ping(ctx, shared.Netns(), address) == nil, nil
	})
	inside(t, server, "ip", "addr", "flush", "dev", name)
	inside(t, server, "ip", "link", "set", "eth0", "up")
}

// port makes a port of the tenant's.
func port(t *testing.T, name string) string {
	t.Helper()
	var made struct{ Port struct{ ID string } }
	body := map[string]any{"port": map[string]any{"network_id": shared.Network, "name": name}}
	require.NoError(t, shared.Admin.Do(within(t, time.Minute), http.MethodPost, cloud.Network, "/v2.0/ports", body, &made))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		_ = shared.Admin.Do(ctx, http.MethodDelete, cloud.Network, "/v2.0/ports/"+made.Port.ID, nil, nil) // some tests delete it themselves
	})
	return made.Port.ID
}

func noDevice(t *testing.T, ports ...string) {
	t.Helper()
	for _, p := range ports {
		for _, prefix := range []string{"tap", "tin", "qbr", "qvo", "qvb"} {
			require.NoFileExists(t, "/sys/class/net/"+(prefix + p)[:14])
		}
	}
}

func TestAttachAndDetachInterface(t *testing.T) {
	own := port(t, "hplug-own")
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	first := interfaces(t, server.ID)
	require.Len(t, first, 1)
	before := booted(t, server.ID)

	one, err := attach(t, server.ID, map[string]any{"net_id": shared.Network})
	require.NoError(t, err)
	require.True(t, eventFinished(t, server.ID, "attach_interface"))
	two, err := attach(t, server.ID, map[string]any{"port_id": own})
	require.NoError(t, err)
	all := []string{first[0], "eth1 " + one.MAC + " up", "eth2 " + two.MAC + " up"}
	hasInterfaces(t, server.ID, all)
	usable(t, server.ID, "eth1", one.IPs[0].Address)
	ports, err := shared.Admin.Ports(within(t, time.Minute), "device_id="+server.ID)
	require.NoError(t, err)
	require.Len(t, ports, 3)
	for _, p := range ports {
		require.Equal(t, shared.Host, p.HostID)
	}
	eventually(t, 20*time.Second, "ports ACTIVE", func(ctx context.Context) (bool, error) {
		ports, err := shared.Admin.Ports(ctx, "status=ACTIVE&device_id="+server.ID)
		return len(ports) == 3, err
	})
	now, err := shared.Admin.Server(within(t, time.Minute), server.ID)
	require.NoError(t, err)
	require.Equal(t, "ACTIVE", now.Status)
	require.Equal(t, before, booted(t, server.ID), "the guest runs on")

	// A reboot inside, through the API, a stop and a start: the same interfaces under the same names.
	shutDown(t, server.ID, "reboot")
	eventually(t, 20*time.Second, "a guest that has booted again", func(ctx context.Context) (bool, error) {
		out, err := shared.Agent.Exec(ctx, server.ID, "cat", "/proc/1/stat")
		f := strings.Fields(out)
		return err == nil && len(f) > 21 && f[21] != before, nil
	})
	hasInterfaces(t, server.ID, all)
	answers(t, server)
	now, err = shared.Admin.Server(within(t, time.Minute), server.ID)
	require.NoError(t, err)
	require.Equal(t, "ACTIVE", now.Status)
	act(t, server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	hasInterfaces(t, server.ID, all)

	detach(t, server.ID, one.PortID)
	noDevice(t, one.PortID)
	hasInterfaces(t, server.ID, []string{all[0], all[2]})
	act(t, server.ID, "os-stop", nil, "SHUTOFF")
	act(t, server.ID, "os-start", nil, "ACTIVE")
	hasInterfaces(t, server.ID, []string{all[0], all[2]})
	answers(t, server)

	detach(t, server.ID, own)
	noDevice(t, own)
	kept, err := shared.Admin.Ports(within(t, time.Minute), "id="+own)
	require.NoError(t, err)
	require.Len(t, kept, 1, "the user's port stays")
	require.Empty(t, kept[0].DeviceID)
	require.Empty(t, kept[0].HostID)
	hasInterfaces(t, server.ID, first)
	// And a reboot inside of a guest that has lost interfaces of its start.
	before = booted(t, server.ID)
	shutDown(t, server.ID, "reboot")
	eventually(t, 20*time.Second, "a guest that has booted again", func(ctx context.Context) (bool, error) {
		out, err := shared.Agent.Exec(ctx, server.ID, "cat", "/proc/1/stat")
		f := strings.Fields(out)
		return err == nil && len(f) > 21 && f[21] != before, nil
	})
	hasInterfaces(t, server.ID, first)
	answers(t, server)
}

func TestInterfaceOfAStoppedServer(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	act(t, server.ID, "os-stop", nil, "SHUTOFF")
	one, err := attach(t, server.ID, map[string]any{"net_id": shared.Network})
	require.NoError(t, err)
	detach(t, server.ID, firstPort(t, server.ID, one.PortID))
	now, err := shared.Admin.Server(within(t, time.Minute), server.ID)
	require.NoError(t, err)
	require.Equal(t, "SHUTOFF", now.Status)
	act(t, server.ID, "os-start", nil, "ACTIVE")
	hasInterfaces(t, server.ID, []string{"eth1 " + one.MAC + " up"})
}

// firstPort is a server's other port.
func firstPort(t *testing.T, server, not string) string {
	t.Helper()
	ports, err := shared.Admin.Ports(within(t, time.Minute), "device_id="+server)
	require.NoError(t, err)
	for _, p := range ports {
		if p.ID != not {
			return p.ID
		}
	}
	require.Fail(t, "no other port")
	return ""
}

func TestInterfaceRefusals(t *testing.T) {
	own := port(t, "hplug-taken")
	other := boot(t, cloud.NewServer{Name: "hplug-other", Networks: cloud.OnPort(own)})
	server := boot(t, cloud.NewServer{})
	address := other.IP()
	for name, c := range map[string]struct {
		request map[string]any
		status  int
	}{
		"port in use":     {map[string]any{"port_id": own}, http.StatusConflict},
		"no such port":    {map[string]any{"port_id": server.ID}, http.StatusNotFound},
		"no such network": {map[string]any{"net_id": server.ID}, http.StatusNotFound},
		"address in use": {map[string]any{
			"net_id": shared.Network, "fixed_ips": []map[string]string{{"ip_address": address}},
		}, http.StatusConflict},
	} {
		_, err := attach(t, server.ID, c.request)
		require.True(t, cloud.IsStatus(err, c.status), "%s: %v", name, err)
	}
	err := shared.Admin.Do(within(t, time.Minute), http.MethodDelete, cloud.Compute, "/servers/"+server.ID+"/os-interface/"+own, nil, nil)
	require.NoError(t, err, "the API asks the host, which refuses")
	now := statusIn(t, 10*time.Second, server.ID, "ACTIVE")
	require.Equal(t, server.IP(), now.IP())
	require.Len(t, interfaces(t, server.ID), 1)
	ports, err := shared.Admin.Ports(within(t, time.Minute), "device_id="+server.ID)
	require.NoError(t, err)
	require.Len(t, ports, 1)
	require.Len(t, interfaces(t, other.ID), 1, "the other server keeps its port")
}

// TestDeletedPortLeavesTheGuest: Neutron deletes a port under a server.
func TestDeletedPortLeavesTheGuest(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	one, err := attach(t, server.ID, map[string]any{"net_id": shared.Network})
	require.NoError(t, err)
	require.Len(t, interfaces(t, server.ID), 2)
	require.NoError(t, shared.Admin.Do(within(t, time.Minute), http.MethodDelete, cloud.Network, "/v2.0/ports/"+one.PortID, nil, nil))
	eventually(t, 20*time.Second, "the guest to lose the interface", func(context.Context) (bool, error) {
		return len(interfaces(t, server.ID)) == 1, nil
	})
	noDevice(t, one.PortID)
}

// TestInterfaceAndAgentRestart: an agent that is killed right after, or in the middle of an attachment.
func TestInterfaceAndAgentRestart(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	one, err := attach(t, server.ID, map[string]any{"net_id": shared.Network})
	require.NoError(t, err)
	before := interfaces(t, server.ID)
	killAgent(t)
	startAgent(t)
	hasInterfaces(t, server.ID, before)
	usable(t, server.ID, "eth1", one.IPs[0].Address)

	ports := portsBut(t, server.ID, nil)
	cut := false
	for try := 0; try < 3 && !cut; try++ { // the agent may be through before it is killed
		if cut = killedWhileAttaching(t, server.ID); !cut {
			for _, port := range portsBut(t, server.ID, ports) {
				detach(t, server.ID, port)
			}
		}
	}
	require.True(t, cut, "no attachment was cut off")
	eventually(t, 30*time.Second, "the port to go", func(ctx context.Context) (bool, error) {
		ports, err := shared.Admin.Ports(ctx, "device_id="+server.ID)
		return len(ports) == 2, err
	})
	hasInterfaces(t, server.ID, before)
	statusIn(t, 10*time.Second, server.ID, "ACTIVE")
	three, err := attach(t, server.ID, map[string]any{"net_id": shared.Network})
	require.NoError(t, err)
	hasInterfaces(t, server.ID, append(before, "eth2 "+three.MAC+" up"))
}

// killedWhileAttaching kills the agent once Neutron has made a third port for it, and starts it again. It tells whether the
// attachment was cut off by that.
func killedWhileAttaching(t *testing.T, server string) bool {
	t.Helper()
	done := make(chan error, 1) // one answer, which comes late if there is none of the agent
	go func() {
		done <- shared.Admin.Do(t.Context(), http.MethodPost, cloud.Compute, "/servers/"+server+"/os-interface",
			map[string]any{"interfaceAttachment": map[string]any{"net_id": shared.Network}}, nil)
	}()
	eventually(t, 20*time.Second, "neutron to make the port", func(ctx context.Context) (bool, error) {
		ports, err := shared.Admin.Ports(ctx, "device_id="+server)
		return len(ports) == 3, err
	})
	killAgent(t)
	startAgent(t)
	select {
	case err := <-done:
		return err != nil
	default:
		return true
	}
}

// portsBut are the ids of a server's ports that are not among others.
func portsBut(t *testing.T, server string, others []string) (ids []string) {
	t.Helper()
	ports, err := shared.Admin.Ports(within(t, time.Minute), "device_id="+server)
	require.NoError(t, err)
	for _, p := range ports {
		if !slices.Contains(others, p.ID) {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// TestDeleteWhileAttaching: nothing stays of an attachment that a delete meets.
func TestDeleteWhileAttaching(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	done := make(chan error, 1)
	go func() {
		done <- shared.Admin.Do(t.Context(), http.MethodPost, cloud.Compute, "/servers/"+server.ID+"/os-interface",
			map[string]any{"interfaceAttachment": map[string]any{"net_id": shared.Network}}, nil)
	}()
	time.Sleep(200 * time.Millisecond)
	ports, err := shared.Admin.Ports(within(t, time.Minute), "device_id="+server.ID)
	require.NoError(t, err)
	remove(t, server.ID)
	t.Logf("attach ended with %v", <-done)
	left, err := shared.Admin.Ports(within(t, time.Minute), "device_id="+server.ID)
	require.NoError(t, err)
	require.Empty(t, left)
	for _, p := range ports {
		noDevice(t, p.ID)
	}
}

// network makes a network of the test's own, with DHCP and the metadata service.
func network(t *testing.T) string {
	t.Helper()
	ctx := within(t, time.Minute)
	var made struct {
		Network struct{ ID string }
		Subnet  struct{ ID string }
	}
	name := strings.ToLower(t.Name())
	require.NoError(t, shared.Admin.Do(ctx, http.MethodPost, cloud.Network, "/v2.0/networks", map[string]any{"network": map[string]any{"name": name}}, &made))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		require.NoError(t, cloud.Poll(ctx, time.Second, "the network to go", func() (bool, error) {
			err := shared.Admin.Do(ctx, http.MethodDelete, cloud.Network, "/v2.0/networks/"+made.Network.ID, nil, nil)
			if cloud.IsStatus(err, http.StatusConflict) {
				return false, nil // its DHCP agent has made a port meanwhile
			}
			return err == nil, err
		}))
	})
	subnet := map[string]any{"network_id": made.Network.ID, "ip_version": 4, "cidr": "10.93.0.0/24", "dns_nameservers": []string{"192.0.2.53"}}
	require.NoError(t, shared.Admin.Do(ctx, http.MethodPost, cloud.Network, "/v2.0/subnets", map[string]any{"subnet": subnet}, &made))
	eventually(t, time.Minute, "the metadata service of the network", func(ctx context.Context) (bool, error) {
		out, err := exec.CommandContext(ctx, "ip", "netns", "exec", "qdhcp-"+made.Network.ID, "ss", "-ltn").CombinedOutput()
		return err == nil && strings.Contains(string(out), "169.254.169.254:80 "), nil
	})
	return made.Network.ID
}

// metadata reads a document of the metadata service inside a guest.
func metadata(ctx context.Context, server, document string) (string, error) {
	return shared.Agent.Exec(ctx, server, "wget", "-q", "-O", "-", "http://169.254.169.254/openstack/latest/"+document)
}

// TestDeviceTags: the metadata service says which interface is which.
func TestDeviceTags(t *testing.T) {
	net := network(t)
	server := boot(t, cloud.NewServer{Networks: []map[string]string{{"uuid": net, "tag": "front"}}})
	back, err := attach(t, server.ID, map[string]any{"net_id": shared.Network, "tag": "back"})
	require.NoError(t, err)
	says := func(what string, check func(text string) bool) {
		t.Helper()
		eventually(t, time.Minute, what, func(ctx context.Context) (bool, error) {
			text, err := metadata(ctx, server.ID, "meta_data.json")
			return err == nil && check(text), nil
		})
	}
	says("metadata with both tags", func(text string) bool {
		return strings.Contains(text, `"front"`) && strings.Contains(text, `"back"`) && strings.Contains(text, back.MAC)
	})
	detach(t, server.ID, back.PortID)
	says("metadata without the port", func(text string) bool {
		return strings.Contains(text, `"front"`) && !strings.Contains(text, back.MAC)
	})
}
