package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// hostForm is what the name of another host may look like: it becomes part of the names of services, files and bridges.
var hostForm = regexp.MustCompile(`^[a-z][a-z0-9]{0,6}$`)

const l2Prefix = "l2-" // of the services of other hosts

// AddHost makes this machine another compute host for neutron, besides p.Host: with an L2 agent of its own, which wires the ports that are
// bound to that host. A compute agent that runs as that host has to be configured by AgentConfig. It can be called again.
//
// On Linux bridge both hosts share the bridges, as two machines share a network, and the second L2 agent filters no packets: the
// chains of the first have the same names. With Open vSwitch each host has its own integration bridge.
func (p *Plane) AddHost(ctx context.Context, name string) error {
	if !hostForm.MatchString(name) {
		return fmt.Errorf("add host %q: want a name of at most 7 small letters and digits", name)
	}
	if p.pid(l2Prefix+name) != 0 {
		return nil
	}
	if _, err := p.hostSlot(name); err != nil {
		return err
	}
	config := "[DEFAULT]\nhost = " + name + "\n"
	program, plugin := "neutron-linuxbridge-agent", "linuxbridge_agent.ini"
	if p.Net == OVS {
		program, plugin = "neutron-openvswitch-agent", "openvswitch_agent.ini"
		slot, err := p.hostSlot(name)
		if err != nil {
			return err
		}
		if err := p.addBridges(ctx, name); err != nil {
			return err
		}
		config += fmt.Sprintf("[ovs]\nintegration_bridge = %s\nbridge_mappings = physnet1:%s\nof_listen_port = %d\n",
			p.IntegrationBridge(name), physicalBridge(name), 6633+slot)
	} else {
		config += "[securitygroup]\nfirewall_driver = noop\n"
	}
	file := "/etc/lab/host-" + name + ".ini"
	if err := p.writeFile(strings.TrimPrefix(file, "/"), config, 0o644); err != nil {
		return err
	}
	err := p.startService(neutronService(l2Prefix+name, program, mlConf, "--config-file=/etc/neutron/plugins/ml2/"+plugin, "--config-file="+file))
	if err != nil {
		return err
	}
	return p.waitL2(ctx, name)
}

// RemoveHost ends the L2 agent of another host and makes neutron and nova forget the host. Its compute agent has ended before.
func (p *Plane) RemoveHost(ctx context.Context, name string) error {
	err := p.stopServices(ctx, 10*time.Second, l2Prefix+name)
	admin, adminErr := p.Admin(ctx)
	if adminErr != nil {
		return errors.Join(err, adminErr)
	}
	services, listErr := admin.ComputeServices(ctx, "nova-compute")
	err = errors.Join(err, listErr)
	for _, service := range services {
		if service.Host == name {
			err = errors.Join(err, admin.Do(ctx, http.MethodDelete, cloud.Compute, "/os-services/"+service.ID, nil, nil))
		}
	}
	var answer struct{ Agents []struct{ ID string } }
	err = errors.Join(err, admin.Do(ctx, http.MethodGet, cloud.Network, "/v2.0/agents?host="+name, nil, &answer))
	for _, agent := range answer.Agents {
		err = errors.Join(err, admin.Do(ctx, http.MethodDelete, cloud.Network, "/v2.0/agents/"+agent.ID, nil, nil))
	}
	return err
}

// waitL2 waits until neutron would bind a port to the host.
func (p *Plane) waitL2(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	admin, err := p.Admin(ctx)
	if err != nil {
		return err
	}
	return cloud.Poll(ctx, 200*time.Millisecond, "the L2 agent of host "+name, func() (bool, error) {
		var answer struct{ Agents []struct{ ID string } }
		err := admin.Do(ctx, http.MethodGet, cloud.Network, "/v2.0/agents?alive=true&host="+name, nil, &answer)
		if p.pid(l2Prefix+name) == 0 {
			return false, fmt.Errorf("%s%s has ended", l2Prefix, name)
		}
		return len(answer.Agents) > 0, err
	})
}

// IntegrationBridge is the Open vSwitch bridge of a host.
func (p *Plane) IntegrationBridge(host string) string {
	if host == p.Host {
		return "br-int"
	}
	return "br-int-" + host
}

func physicalBridge(host string) string { return "br-phy-" + host }

// addBridges makes the bridges of another host and connects its physical one with that of the first host.
func (p *Plane) addBridges(ctx context.Context, name string) error {
	physical, far, near := physicalBridge(name), "to-"+name, "from-"+name
	for _, args := range [][]string{
		{"--may-exist", "add-br", p.IntegrationBridge(name), "--", "set", "bridge", p.IntegrationBridge(name), "datapath_type=netdev"},
		{"--may-exist", "add-br", physical, "--", "set", "bridge", physical, "datapath_type=netdev"},
		{"--may-exist", "add-port", "br-phys", far, "--", "set", "interface", far, "type=patch", "options:peer=" + near},
		{"--may-exist", "add-port", physical, near, "--", "set", "interface", near, "type=patch", "options:peer=" + far},
	} {
		if _, err := p.OVS(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// hostSlot is a small number that only this host has: 0 for the first one.
func (p *Plane) hostSlot(name string) (int, error) {
	if name == p.Host {
		return 0, nil
	}
	hosts := strings.Fields(p.mark("hosts"))
	if slot := slices.Index(hosts, name); slot >= 0 {
		return slot + 1, nil
	}
	hosts = append(hosts, name)
	return len(hosts), p.setMark("hosts", strings.Join(hosts, " "))
}

// l2Services are the services of other hosts that were started.
func (p *Plane) l2Services() ([]string, error) {
	files, err := filepath.Glob(p.pidFile(l2Prefix + "*"))
	names := make([]string, 0, len(files))
	for _, file := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".pid"))
	}
	slices.Sort(names)
	return names, err
}

// idRange is the part of root's subordinate ids that the agent of a host may use. Agents of one machine share no ids.
func (p *Plane) idRange(host string) (string, error) {
	const base, size = 1_000_000, 20_000_000 // for 305 guests
	slot, err := p.hostSlot(host)
	return fmt.Sprintf("%d:%d", base+slot*size, size), err
}

// AgentConfig is the configuration of a compute agent of this or another host, in the form of nova.conf. The agent keeps everything below dir.
func (p *Plane) AgentConfig(host, dir string) (string, error) {
	ids, err := p.idRange(host)
	if err != nil {
		return "", err
	}
	neutron, vif := "", ""
	if p.Net == OVS {
		neutron = "\novs_bridge = " + p.IntegrationBridge(host)
		vif = "\n[os_vif_ovs]\novsdb_connection = tcp:127.0.0.1:6640\n"
	}
	return fmt.Sprintf(`[DEFAULT]
host = %s
my_ip = 127.0.0.1
transport_url = %s
state_path = %s
# The servers of a lab idle: many go on one CPU.
cpu_allocation_ratio = 64.0

[glance]
%s

[placement]
%s

[neutron]
%s

[service_user]
send_service_user_token = true
%s

[oslo_messaging_notifications]
driver = messagingv2

[notifications]
notification_format = both
notify_on_state_change = vm_and_task_state

[vnc]
enabled = false

[serial_console]
enabled = true
base_url = ws://127.0.0.1:6083/
proxyclient_address = 127.0.0.1

[lxc]
id_range = %s
%s`, host, TransportURL(), filepath.Join(dir, "state"),
		authSection("glance"), authSection("placement"), authSection("neutron")+neutron, authSection("nova"), ids, vif), nil
}

// forgetHosts is for Down: the next Up starts with one host.
func (p *Plane) forgetHosts() error { return os.RemoveAll(p.path("marks", "hosts")) }
