package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

const (
	mlConf       = "--config-file=/etc/neutron/plugins/ml2/ml2_conf.ini"
	neutronConf  = "--config-file=/etc/neutron/neutron.conf"
	erlangOnLoop = "-kernel inet_dist_use_interface {127,0,0,1}"
)

// rabbitEnv keeps Erlang on the loopback and RabbitMQ's node name independent of the machine's.
var rabbitEnv = []string{
	"HOME=/var/lib/rabbitmq", "RABBITMQ_NODENAME=rabbit@localhost", "ERL_EPMD_ADDRESS=127.0.0.1", "RABBITMQ_DIST_PORT=25672",
	"RABBITMQ_LOGS=-", "RABBITMQ_CTL_ERL_ARGS=" + erlangOnLoop,
	"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=" + erlangOnLoop + " +sbwt none +sbwtdcpu none +sbwtdio none",
}

func uwsgiService(name, user string, more ...string) service {
	args := append([]string{"/usr/bin/uwsgi_python3", "--ini", "/etc/lab/" + name + ".ini"}, more...)
	return service{name, user, []string{"HOME=/var/lib/" + user}, args}
}

func novaService(name string) service {
	return service{name, "nova", []string{"HOME=/var/lib/nova"}, []string{"/usr/bin/" + name}}
}

// novaModule is a program of nova whose package the chroot does not need: its code comes with python3-nova.
func novaModule(name, program, module string, args ...string) service {
	s := novaService(name)
	code := "import sys; sys.argv[0] = '" + program + "'; from nova.cmd import " + module + " as m; m.main()"
	s.args = append([]string{"/usr/bin/python3", "-c", code}, args...)
	return s
}

func neutronService(name, program string, configs ...string) service {
	args := append([]string{"/usr/bin/" + program, neutronConf}, configs...)
	return service{name, "neutron", []string{"HOME=/var/lib/neutron", "TMPDIR=/var/lib/neutron/tmp"}, args}
}

// Up starts the control plane and returns when a server can be booted, short of a compute service. It can be called again.
func (p *Plane) Up(ctx context.Context) error {
	if p.mark("packages") == "" {
		return fmt.Errorf("bring up %s: it is not installed", p.Base)
	}
	if was := p.mark("up"); was != "" && was != p.Net {
		if err := p.Down(ctx); err != nil { // another kind of network
			return err
		}
	}
	if err := p.checkPorts(); err != nil {
		return err
	}
	if err := errors.Join(p.recordHost(ctx), p.setMark("net", p.Net), p.setMark("up", p.Net), p.mount(), p.mountNetns()); err != nil {
		return err
	}
	if err := p.configure(ctx); err != nil {
		return err
	}
	p.Say("starting MariaDB, RabbitMQ, memcached")
	err := together(
		func() error { return p.startDatabase(ctx) },
		func() error { return p.startRabbit(ctx) },
		func() error { return p.startNetwork(ctx) },
	)
	if err != nil {
		return err
	}
	p.Say("starting Keystone, Glance, Placement, Nova, Neutron")
	if err := p.startControl(ctx); err != nil {
		return err
	}
	if err := p.waitNetworkAgents(ctx); err != nil {
		return err
	}
	if err := p.once("seed", func() error {
		p.Say("creating flavors, images, the network %s", DemoNetwork)
		return p.seedContent(ctx)
	}); err != nil {
		return err
	}
	if err := p.waitReady(ctx); err != nil {
		return err
	}
	p.Say("the control plane is up (%s)", p.Net)
	return nil
}

func (p *Plane) startDatabase(ctx context.Context) error {
	err := p.startServices(
		service{"mariadb", "mysql", nil, []string{"/usr/sbin/mariadbd", "--user=mysql", "--socket=/run/mysqld/mysqld.sock"}},
		service{"memcached", "memcache", nil, []string{"/usr/bin/memcached", "-l", "127.0.0.1", "-U", "0", "-m", "64"}},
	)
	if err != nil {
		return err
	}
	if err := p.waitPort(ctx, "mariadb", 3306); err != nil {
		return err
	}
	if err := p.once("databases", func() error {
		p.Say("creating the databases")
		return p.createDatabases(ctx)
	}); err != nil {
		return err
	}
	// These need nothing but the database.
	if err := p.startServices(
		uwsgiService("keystone", "keystone"),
		uwsgiService("placement", "placement"),
		p.Release.image,
	); err != nil {
		return err
	}
	return p.once("identity", func() error {
		if err := p.waitPort(ctx, "keystone", 5000); err != nil {
			return err
		}
		p.Say("creating users and the catalog")
		return p.seedIdentity(ctx)
	})
}

// createDatabases creates the schemas, two services at a time.
func (p *Plane) createDatabases(ctx context.Context) error {
	var sql strings.Builder
	sql.WriteString("CREATE USER IF NOT EXISTS 'lab'@'127.0.0.1' IDENTIFIED BY '" + Password + "'; GRANT ALL ON *.* TO 'lab'@'127.0.0.1';")
	for _, name := range []string{"keystone", "glance", "placement", "nova_api", "nova", "nova_cell0", "neutron"} {
		sql.WriteString("CREATE DATABASE IF NOT EXISTS " + name + " CHARACTER SET utf8;")
	}
	if _, err := p.SQL(ctx, sql.String()); err != nil {
		return err
	}
	steps := func(log string, commands ...[]string) func() error {
		return func() error {
			for _, command := range commands {
				if err := p.logged(p.chrootCommand(ctx, command[0], nil, command[1:]...), log); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return together(
		steps("databases-1",
			[]string{"keystone", "keystone-manage", "db_sync"},
			[]string{"root", "keystone-manage", "fernet_setup", "--keystone-user", "keystone", "--keystone-group", "keystone"},
			[]string{"root", "keystone-manage", "credential_setup", "--keystone-user", "keystone", "--keystone-group", "keystone"},
			[]string{
				"keystone", "keystone-manage", "bootstrap", "--bootstrap-password", Password,
				"--bootstrap-admin-url", AuthURL, "--bootstrap-internal-url", AuthURL, "--bootstrap-public-url", AuthURL,
				"--bootstrap-region-id", region,
			},
			[]string{"glance", "glance-manage", "db_sync"},
			[]string{"placement", "placement-manage", "db", "sync"},
		),
		steps("databases-2",
			[]string{"nova", "nova-manage", "api_db", "sync"},
			[]string{
				"nova", "nova-manage", "cell_v2", "map_cell0",
				"--database_connection", "mysql+pymysql://lab:" + Password + "@127.0.0.1/nova_cell0",
			},
			[]string{"nova", "sh", "-c", "nova-manage cell_v2 list_cells | grep -q cell1 || nova-manage cell_v2 create_cell --name cell1"},
			[]string{"nova", "nova-manage", "db", "sync"},
		),
		steps("databases-3", []string{"neutron", "neutron-db-manage", neutronConf, mlConf, "upgrade", "heads"}),
	)
}

// SQL runs statements in MariaDB and returns the rows, with tabs between columns.
func (p *Plane) SQL(ctx context.Context, statements string) (string, error) {
	return p.Run(ctx, "root", "mariadb", "--socket=/run/mysqld/mysqld.sock", "-N", "-B", "-e", statements)
}

func (p *Plane) startRabbit(ctx context.Context) error {
	err := p.startService(service{"epmd", "rabbitmq", []string{"ERL_EPMD_ADDRESS=127.0.0.1"}, []string{"/usr/bin/epmd", "-address", "127.0.0.1"}})
	if err != nil {
		return err
	}
	if err := p.waitPort(ctx, "epmd", 4369); err != nil {
		return err
	}
	if err := p.startService(service{"rabbitmq", "rabbitmq", rabbitEnv, []string{"/usr/lib/rabbitmq/bin/rabbitmq-server"}}); err != nil {
		return err
	}
	return p.waitPort(ctx, "rabbitmq", 5672)
}

// Rabbitctl runs rabbitmqctl.
func (p *Plane) Rabbitctl(ctx context.Context, args ...string) (string, error) {
	command := append([]string{"/usr/lib/rabbitmq/bin/rabbitmqctl", "-q"}, args...)
	return capture(p.chrootCommand(ctx, "rabbitmq", rabbitEnv, command...), strings.Join(args, " "))
}

// startNetwork makes what the L2 agent finds on the host.
func (p *Plane) startNetwork(ctx context.Context) error {
	if p.Net == LinuxBridge {
		return p.addPhysicalLink(ctx)
	}
	if _, err := p.Run(ctx, "root", "install", "-d", "/run/openvswitch", "/etc/openvswitch"); err != nil {
		return err
	}
	const db, socket = "/etc/openvswitch/conf.db", "/run/openvswitch/db.sock"
	_, err := p.Run(ctx, "root", "sh", "-c", "test -f "+db+" || ovsdb-tool create "+db+" /usr/share/openvswitch/vswitch.ovsschema")
	if err != nil {
		return err
	}
	err = p.startService(service{"ovsdb-server", "root", nil, []string{
		"/usr/sbin/ovsdb-server", db, "--remote=punix:" + socket, "--remote=ptcp:6640:127.0.0.1",
		"--unixctl=/run/openvswitch/ovsdb-server.ctl", "-vconsole:info", "-vsyslog:off",
	}})
	if err != nil {
		return err
	}
	if err := p.waitPort(ctx, "ovsdb-server", 6640); err != nil {
		return err
	}
	if _, err := p.OVS(ctx, "--no-wait", "init"); err != nil {
		return err
	}
	if _, err := p.OVS(ctx, "--no-wait", "set", "Open_vSwitch", ".", "external_ids:hostname="+p.Host, "external_ids:system-id=lab"); err != nil {
		return err
	}
	// The kernel may have no datapath of Open vSwitch: its own, in user space, is always there.
	err = p.startService(service{"ovs-vswitchd", "root", nil, []string{
		"/usr/sbin/ovs-vswitchd", "unix:" + socket, "--unixctl=/run/openvswitch/ovs-vswitchd.ctl", "-vconsole:info", "-vsyslog:off",
	}})
	if err != nil {
		return err
	}
	for _, bridge := range []string{"br-int", "br-phys"} {
		if _, err := p.OVS(ctx, "--may-exist", "add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev"); err != nil {
			return err
		}
	}
	return nil
}

// OVS runs ovs-vsctl.
func (p *Plane) OVS(ctx context.Context, args ...string) (string, error) {
	return p.Run(ctx, "root", append([]string{"ovs-vsctl", "--timeout=30"}, args...)...)
}

func (p *Plane) startControl(ctx context.Context) error {
	l2, l2Conf := "neutron-linuxbridge-agent", "/etc/neutron/plugins/ml2/linuxbridge_agent.ini"
	if p.Net == OVS {
		l2, l2Conf = "neutron-openvswitch-agent", "/etc/neutron/plugins/ml2/openvswitch_agent.ini"
	}
	err := p.startServices(append(
		slices.Clone(p.Release.network),
		novaService("nova-conductor"),
		novaService("nova-scheduler"),
		uwsgiService("nova-api", "nova"),
	)...)
	if err != nil {
		return err
	}
	// An agent that calls before the server listens waits out a whole RPC timeout.
	if err := p.waitQueue(ctx, "q-reports-plugin"); err != nil {
		return err
	}
	if p.Routers {
		if err := p.startService(neutronService("neutron-l3-agent", "neutron-l3-agent", "--config-file=/etc/neutron/l3_agent.ini")); err != nil {
			return err
		}
	}
	return p.startServices(
		neutronService("neutron-l2-agent", l2, mlConf, "--config-file="+l2Conf),
		neutronService("neutron-dhcp-agent", "neutron-dhcp-agent", "--config-file=/etc/neutron/dhcp_agent.ini"),
		neutronService("neutron-metadata-agent", "neutron-metadata-agent", "--config-file=/etc/neutron/metadata_agent.ini"),
		uwsgiService("nova-metadata", "nova"),
		novaModule("nova-serialproxy", "nova-serialproxy", "serialproxy"),
	)
}

// waitNetworkAgents waits until neutron counts on its agents: a network that is created before gets no DHCP.
func (p *Plane) waitNetworkAgents(ctx context.Context) error {
	if err := errors.Join(p.waitPort(ctx, "keystone", 5000), p.waitPort(ctx, "neutron-server", 9696)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	admin, err := p.Admin(ctx)
	if err != nil {
		return err
	}
	pidFile, err := os.Stat(p.pidFile("neutron-l2-agent"))
	if err != nil {
		return err
	}
	since := pidFile.ModTime().Add(-2 * time.Second)
	return cloud.Poll(ctx, 200*time.Millisecond, "neutron's agents", func() (bool, error) {
		var answer struct {
			Agents []struct {
				Started string `json:"started_at"` // an agent of before the last Down may still be called alive
			}
		}
		if err := admin.Do(ctx, http.MethodGet, cloud.Network, "/v2.0/agents?alive=true&host="+p.Host, nil, &answer); err != nil {
			return false, err
		}
		agents, fresh := 3, 0 // L2, DHCP, metadata
		if p.Routers {
			agents++
		}
		for _, agent := range answer.Agents {
			if started, err := time.Parse(time.DateTime, agent.Started); err == nil && started.After(since) {
				fresh++
			}
		}
		return fresh == agents, nil
	})
}

// waitReady waits until every part answers and the agents have reported.
func (p *Plane) waitReady(ctx context.Context) error {
	for _, s := range []struct {
		name string
		port int
	}{
		{"keystone", 5000},
		{"glance-api", 9292},
		{"placement", 8778},
		{"nova-api", 8774},
		{"neutron-server", 9696},
	} {
		if err := p.waitPort(ctx, s.name, s.port); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	admin, err := p.Admin(ctx)
	if err != nil {
		return err
	}
	for _, binary := range []string{"nova-conductor", "nova-scheduler"} {
		err := cloud.Poll(ctx, 300*time.Millisecond, binary+" to report", func() (bool, error) {
			services, err := admin.ComputeServices(ctx, binary)
			return len(services) == 1 && services[0].State == "up", err
		})
		if err != nil {
			return err
		}
	}
	network, err := admin.NetworkID(ctx, DemoNetwork)
	if err != nil {
		return err
	}
	return p.waitDHCP(ctx, network)
}

// waitDHCP waits until the network's DHCP server runs. Its port may still be called active from before the last Down.
func (p *Plane) waitDHCP(ctx context.Context, network string) error {
	file := p.inRoot("var/lib/neutron/dhcp", network, "pid")
	return cloud.Poll(ctx, 200*time.Millisecond, "the DHCP server of network "+network, func() (bool, error) {
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil && p.owns(pid), nil
	})
}
