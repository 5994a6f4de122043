package config

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// credentials is the least that a file needs for a start.
const credentials = `
[placement]
auth_type = password
auth_url = http://keystone:5000/v3
username = placement
password = placement-pass
[neutron]
auth_section = placement
`

// write puts text into a file of a new directory and returns its path.
func write(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "nova.conf")
	require.NoError(t, os.WriteFile(p, []byte(text), 0o600))
	return p
}

// sources reads only the files with the given texts.
func sources(t *testing.T, texts ...string) Sources {
	t.Helper()
	s := Sources{Dirs: []string{t.TempDir()}}
	for _, text := range texts {
		s.Files = append(s.Files, write(t, text))
	}
	return s
}

func load(t *testing.T, texts ...string) (*Config, *Report) {
	t.Helper()
	c, r, err := Load(sources(t, append([]string{credentials}, texts...)...))
	require.NoError(t, err)
	return c, r
}

func TestLoadTypedValues(t *testing.T) {
	t.Parallel()
	c, r := load(t, `
[DEFAULT]
host = node-1.example.org
my_ip = 192.0.2.7
state_path = /srv/nova
report_interval = 15
shelved_offload_time = -1
cpu_allocation_ratio = 0.0
ram_allocation_ratio = 1.25
heal_instance_info_cache_interval = 0
reserved_huge_pages = node:0,size:2048,count:64
reserved_huge_pages = node:1,size:2048,count:32
[compute]
cpu_dedicated_set = 1-4,^3,6
[serial_console]
enabled = yes
port_range = 20000:20010
[oslo_messaging_rabbit]
kombu_reconnect_delay = 0.25
heartbeat_timeout_threshold = 0
[neutron]
connect_retry_delay = 1.5
retriable_status_codes = 502, 503
[lxc]
release = 2025.1
id_range = 1000000:1000000000
console_log_size = 65536
`)
	require.Empty(t, r.Findings)
	require.Equal(t, "node-1.example.org", c.Default.Host)
	require.Equal(t, "192.0.2.7", c.Default.MyBlockStorageIP)
	require.Equal(t, "/srv/nova/compute-agent/instances", c.LXC.InstancesDir)
	require.Equal(t, 15*time.Second, c.Default.ReportInterval)
	require.Equal(t, -time.Second, c.Default.ShelvedOffloadTime)
	require.Nil(t, c.Default.CPUAllocationRatio)
	require.InDelta(t, 1.25, *c.Default.RAMAllocationRatio, 0)
	require.Nil(t, c.Default.InitialCPUAllocationRatio)
	require.Equal(t, time.Duration(0), *c.Default.HealInstanceInfoCacheInterval)
	require.Equal(t, []map[string]string{{"node": "0", "size": "2048", "count": "64"}, {"node": "1", "size": "2048", "count": "32"}}, c.Default.ReservedHugePages)
	require.Equal(t, CPUSet{1, 2, 4, 6}, c.Compute.CPUDedicatedSet)
	require.Nil(t, c.Compute.CPUSharedSet)
	require.Equal(t, PortRange{First: 20000, Last: 20010}, c.SerialConsole.PortRange)
	require.Equal(t, 250*time.Millisecond, c.RabbitMQ.KombuReconnectDelay)
	require.Zero(t, c.RabbitMQ.HeartbeatTimeoutThreshold)
	require.Equal(t, 1500*time.Millisecond, c.Neutron.Auth.ConnectRetryDelay)
	require.Equal(t, []int{502, 503}, c.Neutron.Auth.RetriableStatusCodes)
	require.Equal(t, "epoxy", c.LXC.Release)
	require.Equal(t, &IDRange{Base: 1000000, Size: 1000000000}, c.LXC.IDRange)
	require.Equal(t, int64(65536), c.LXC.ConsoleLogSize)
}

func TestFaultsAreReportedTogether(t *testing.T) {
	t.Parallel()
	s := sources(t, `[DEFAULT]
report_interval = ten
vif_plugging_timeout = -5
vif_plugging_is_fatal = maybe
host = -bad-
my_ip = 300.1.1.1
state_path = relative/path
block_device_allocate_retries = 5 # often
transport_url = rabbit://openstack:hunter2@host:no-port/
[compute]
cpu_shared_set = 1-
[notifications]
notification_format = all
[lxc]
storage_backend = zfs
metrics_listen = 9100
id_range = 0:65536
release = yoga
[serial_console]
base_url = 127.0.0.1
port_range = 10:5
`)
	c, r, err := Load(s)
	require.Nil(t, c)
	f := s.Files[0]
	var fault *Error
	require.ErrorAs(t, err, &fault)
	require.Equal(t, r.Faults(), fault.Faults)
	var got []string
	for _, x := range fault.Faults {
		got = append(got, strings.TrimPrefix(x.String(), f))
	}
	require.Equal(t, []string{
		`[placement] auth_type: missing (set it to password or v3applicationcredential, and the credentials)`,
		`[neutron] auth_type: missing (set it to password or v3applicationcredential, and the credentials)`,
		`:2: [DEFAULT] report_interval: "ten" is not a whole number (allowed: seconds, a whole number, at least 1)`,
		`:3: [DEFAULT] vif_plugging_timeout: "-5" is too small (allowed: seconds, a whole number, at least 0)`,
		`:4: [DEFAULT] vif_plugging_is_fatal: "maybe" is not a truth value (allowed: true or false (also 1/0, yes/no, on/off))`,
		`:5: [DEFAULT] host: "-bad-" is neither a host name nor an IP address (allowed: host name or IP address)`,
		`:6: [DEFAULT] my_ip: "300.1.1.1" is not an IP address (allowed: IP address)`,
		`:7: [DEFAULT] state_path: "relative/path" is not an absolute path (allowed: absolute path)`,
		`:8: [DEFAULT] block_device_allocate_retries: "5 # often" is not a whole number (allowed: whole number, at least 0; a comment must start in the first column)`,
		`:9: [DEFAULT] transport_url: a host's port is not a number from 1 to 65535 (rabbit://user:password@host:5672,user:password@host2:5672/virtual_host)`,
		`:11: [compute] cpu_shared_set: "1-" is not a CPU set (allowed: CPU set such as 1-4,^3,6)`,
		`:13: [notifications] notification_format: "all" is not one of the allowed values (allowed: unversioned, versioned, both)`,
		`:15: [lxc] storage_backend: "zfs" is not one of the allowed values (allowed: overlay, dir, btrfs)`,
		`:16: [lxc] metrics_listen: "9100" is not host:port (allowed: host:port)`,
		`:17: [lxc] id_range: "0:65536" is a range that holds the host's root (allowed: id range base:count)`,
		`:18: [lxc] release: "yoga" is not a known release (allowed: auto, or a release from zed to hibiscus or 2023.1 to 2026.2)`,
		`:20: [serial_console] base_url: "127.0.0.1" is not a URI with scheme and host (allowed: URI)`,
		`:21: [serial_console] port_range: "10:5" is not a port range (allowed: port range first:last)`,
	}, got)
}

func TestSyntaxFaults(t *testing.T) {
	t.Parallel()
	s := sources(t, "stray = 1\n[DEFAULT]\npassword-without-sign\n= v\n[open\n\thanging\n  more\nhost = a\n\xff\n[]\n")
	_, r, err := Load(s)
	require.Error(t, err)
	lines := map[int]string{}
	for _, f := range r.Faults() {
		lines[f.Line] = f.Message
	}
	require.Equal(t, map[int]string{
		1:  "option before any section",
		3:  "neither a section, a comment nor an assignment",
		4:  "option name is empty",
		5:  "section header does not end with ]",
		9:  "line is not valid UTF-8 text",
		10: "section name is empty",
	}, lines)
	require.NotContains(t, err.Error(), "password-without-sign", "a stray line may be half of a secret")
}

func TestUnreadableSources(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, r, err := Load(Sources{Files: []string{filepath.Join(dir, "none.conf")}, Dirs: []string{filepath.Join(dir, "none.d")}})
	require.Error(t, err)
	require.Len(t, r.Faults(), 2)
	require.Equal(t, filepath.Join(dir, "none.d")+": no such file or directory (give an existing, readable path)", r.Faults()[1].String())
}

func TestPrecedence(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	put := func(p, text string) string {
		p = filepath.Join(root, p)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o750))
		require.NoError(t, os.WriteFile(p, []byte(text), 0o600))
		return p
	}
	values := func(v string) string { return "[DEFAULT]\nconsole_host = " + v + "\n" }
	put("etc/nova/nova.conf", credentials+values("nova"))
	put("etc/compute-agent/compute-agent.conf", values("agent"))
	put("etc/nova/nova-compute.conf", values("compute"))

	host := func(s Sources) string {
		s.root = root
		c, _, err := Load(s)
		require.NoError(t, err)
		return c.Default.ConsoleHost
	}
	require.Equal(t, "agent", host(Sources{}))
	put("etc/nova/nova.conf.d/20.conf", values("nova20"))
	put("etc/nova/nova.conf.d/10.conf", values("nova10"))
	put("etc/nova/nova.conf.d/.hidden.conf", values("hidden"))
	put("etc/nova/nova.conf.d/30.conf.old", values("old"))
	require.Equal(t, "nova20", host(Sources{}))

	a, d := put("a.conf", values("a")), filepath.Dir(put("d/1.conf", values("d")))
	require.Equal(t, "d", host(Sources{Files: []string{filepath.Join(root, "etc/nova/nova.conf"), a}, Dirs: []string{d}}))
	var s Sources
	require.NoError(t, s.FileFlag().Set(filepath.Join(root, "etc/nova/nova.conf")))
	require.NoError(t, s.DirFlag().Set(d))
	require.NoError(t, s.FileFlag().Set(a))
	require.Equal(t, "a", host(s), "files and directories count in command-line order")
	s.Env = []string{"OS_DEFAULT__CONSOLE_HOST=env", "OS_PASSWORD=not-ours"}
	require.Equal(t, "env", host(s))
	s.Overrides = map[string]string{"console_host": "cli", "lxc.release": "zed"}
	require.Equal(t, "cli", host(s))
	s.Overrides = map[string]string{"lxc.nothing": "x"}
	_, _, err := Load(s)
	require.ErrorContains(t, err, "command line: [lxc] nothing: no such option")
}

func TestAuthSections(t *testing.T) {
	t.Parallel()
	c, r := load(t, `
[placement]
auth_section = service_auth
auth_type = ignored
region_name = here
cafile = /etc/ssl/placement.pem
[Service_Auth]
auth_plugin = v3applicationcredential
auth_url = http://k/v3
application_credential_id = abc
application_credential_secret = s3cret
[neutron]
auth_section = keystone_authtoken
[keystone_authtoken]
auth_type = password
auth_url = http://k/v3
user-name = old
password = p$$w
tenant_name = service
`)
	require.Equal(t, "v3applicationcredential", c.Placement.Auth.Type)
	require.Equal(t, Secret("s3cret"), c.Placement.Auth.ApplicationCredentialSecret)
	require.Equal(t, "here", c.Placement.Auth.RegionName, "the endpoint stays with its section")
	require.Equal(t, "/etc/ssl/placement.pem", c.Placement.Auth.CAFile)
	require.Equal(t, "old", c.Neutron.Auth.Username)
	require.Equal(t, "service", c.Neutron.Auth.ProjectName)
	require.Equal(t, "p$w", c.Neutron.Auth.Password.Reveal())
	require.Len(t, r.Warnings(), 3)
	require.Contains(t, r.Warnings()[0].String(), "[service_auth] auth_plugin: warning: old name of an option (write it as [service_auth] auth_type)")
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	_, r := load(t, `
[DEFAULT]
compute_driver = libvirt.LibvirtDriver
cpu_allocation_ration = 4
default_ephemeral_format = vfat
[libvirt]
virt_type = lxc
[lxd]
root_dir = /var/lib/lxd
[lxc]
storage_backends = dir
frobnicate = 1
`)
	var got []string
	for _, f := range r.Findings {
		require.False(t, f.Fault)
		got = append(got, strings.SplitN(f.String(), ": ", 2)[1])
	}
	require.Equal(t, []string{
		`[DEFAULT] compute_driver: warning: "libvirt.LibvirtDriver" is another driver's name, ignored (this agent runs LXC containers; remove the option)`,
		`[DEFAULT] default_ephemeral_format: warning: "vfat" is none of ext4, xfs: servers whose flavor has an ephemeral disk are refused (name one of these, or remove the option for ext4)`,
		`[lxd] root_dir: warning: option of nova-lxd, ignored (the agent's options are in [lxc])`,
		`[lxc] storage_backends: warning: unknown option, ignored (did you mean storage_backend?)`,
		`[lxc] frobnicate: warning: unknown option, ignored`,
	}, got)
}

func TestCombinations(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"[oslo_messaging_rabbit]\nrabbit_ha_queues=1\nrabbit_quorum_queue=1\n":    "rabbit_ha_queues: cannot be combined",
		"[oslo_messaging_rabbit]\nrabbit_stream_fanout=1\n":                       "rabbit_stream_fanout: needs",
		"[oslo_messaging_rabbit]\nssl_key_file=/k\n":                              "ssl_key_file: a key without",
		"[compute]\ncpu_shared_set=1,2\ncpu_dedicated_set=2-3\n":                  "cpu_dedicated_set: CPU 2 is in",
		"[DEFAULT]\nvcpu_pin_set=1\n[compute]\ncpu_dedicated_set=2\n":             "vcpu_pin_set: cannot be combined",
		"[lxc]\nshares=data:srv\n":                                                `"data:srv" is not NAME:/directory`,
		"[lxc]\nshares=../x:/srv\n":                                               `"../x:/srv" is not NAME:/directory`,
		"[lxc]\nshares=a:/srv:rw\n":                                               `"a:/srv:rw" is not NAME:/directory`,
		"[lxc]\nshares=a:/srv,a:/opt\n":                                           "a is there twice",
		"[lxc]\nshares=a:/\n":                                                     "/ must not be given to servers",
		"[lxc]\nshares=a:/srv/../proc/1\n":                                        "/proc/1 must not be given to servers",
		"[lxc]\nstate_dir=/srv/agent\nshares=a:/srv\n":                            "/srv would give servers what is the agent's own in /srv/agent",
		"[lxc]\ninstances_dir=/srv/i\nshares=a:/srv/i/dir\n":                      "/srv/i/dir would give servers what is the agent's own in /srv/i",
		"[lxc]\nid_range=100000:1000\n":                                           "id_range: smaller than",
		"[glance]\nverify_glance_signatures=true\n[key_manager]\nbackend=vault\n": `backend: the certificates of signed images cannot be read from "vault"`,
		"[barbican]\nsend_service_user_token=true\n":                              "[barbican_service_user] auth_type: missing",
		"[barbican]\nbarbican_endpoint_type=private\n":                            "barbican_endpoint_type",
		"[lxc]\nroot_disk_default_gb=10\nroot_disk_max_gb=5\n":                    "root_disk_default_gb: larger than",
		"[lxc]\nroot_disk_quota=project\nallow_privileged=1\n":                    "root_disk_quota: project quotas do not bound privileged containers",
		"[lxc]\nroot_disk_quota=block\n":                                          `root_disk_quota: "block" is not one of the allowed values (allowed: file, project)`,
		"[lxc]\nextra_pools=fast:zfs:/f\n":                                        "a back end that is none of overlay, dir, btrfs",
		"[lxc]\nextra_pools=Fast:dir:/f\n":                                        "a pool's name that is not",
		"[lxc]\nextra_pools=default:dir:/f\n":                                     "a pool called default",
		"[lxc]\nextra_pools=fast:dir:f\n":                                         "a pool's directory that is no absolute path",
		"[lxc]\nextra_pools=fast:dir:/f:-1\n":                                     "a pool's reserve",
		"[lxc]\nextra_pools=fast:dir\n":                                           "not name:back end:directory",
		"[lxc]\nextra_pools=fast:dir:/f,fast:dir:/g\n":                            "extra_pools: pool fast is given twice",
		"[lxc]\nextra_pools=fast:dir:/f/,slow:dir:/f\n":                           "extra_pools: pool slow has the directory of pool fast",
		"[lxc]\ninstances_dir=/i\nextra_pools=fast:dir:/i/\n":                     "extra_pools: pool fast has the directory of instances_dir",
		"[lxc]\nextra_pools=fast:dir:/f\nimage_pools=slow\n":                      "image_pools: \"slow\" is no pool",
		"[placement]\nauth_url=\n":                                                "auth_url: missing",
		"[placement]\nusername=\n":                                                "username: missing",
		"[placement]\nauth_type=v3applicationcredential\n":                        "application_credential_secret: missing",
		"[service_user]\nsend_service_user_token=true\n":                          "[service_user] auth_type: missing",
		"[DEFAULT]\nhost=$my_ip.x\n":                                              "write ${my_ip} where a dot follows",
		"[DEFAULT]\ntransport_url=amqp://h/\n":                                    "does not start with rabbit://",
	} {
		_, _, err := Load(sources(t, credentials, text))
		require.ErrorContains(t, err, want, text)
	}
}

func TestSignatures(t *testing.T) {
	t.Parallel()
	const verify, validate = "[glance]\nverify_glance_signatures=true\n", "[glance]\nenable_certificate_validation=true\n"
	for text, want := range map[string]string{
		verify: "",
		verify + "[key_manager]\napi_class=castellan.key_manager.barbican_key_manager.BarbicanKeyManager\n": "old name of an option",
		"[key_manager]\nbackend=vault\n": "",
		verify + validate:                "only servers that name trusted certificates boot",
		validate:                         "has no effect without verify_glance_signatures or default_trusted_certificate_ids",
		validate + "default_trusted_certificate_ids=125e6199-2de4-46e3-b091-8e2401ef0d63\n": "",
	} {
		c, r, err := Load(sources(t, credentials, text))
		require.NoError(t, err, text)
		var warnings strings.Builder
		for _, f := range r.Warnings() {
			warnings.WriteString(f.String())
		}
		if want == "" {
			require.Empty(t, warnings.String(), text)
		}
		require.Contains(t, warnings.String(), want, text)
		require.Equal(t, "public", c.Barbican.BarbicanEndpointType)
		require.True(t, c.Barbican.VerifySSL)
	}
}

// TestReferencesStayFinite has a chain that is too long and one that doubles at every step.
func TestReferencesStayFinite(t *testing.T) {
	t.Parallel()
	var chain, laughs strings.Builder
	for i := range 200 {
		fmt.Fprintf(&chain, "a%d = $a%d\n", i, i+1)
	}
	for i := range 40 {
		fmt.Fprintf(&laughs, "a%d = $a%d$a%d\n", i, i+1, i+1)
	}
	for _, text := range []string{chain.String() + "a200 = end\n", laughs.String() + "a40 = ha\n"} {
		_, _, err := Load(sources(t, credentials, "[DEFAULT]\nconsole_host = $a0\n"+text))
		require.Error(t, err)
		require.Less(t, len(err.Error()), 1000)
	}
}

func TestEmptyNumbersAreDefaults(t *testing.T) {
	t.Parallel()
	c, _ := load(t, "[DEFAULT]\nreport_interval =\ncpu_allocation_ratio =\n[neutron]\ntimeout =\n")
	require.Equal(t, 10*time.Second, c.Default.ReportInterval)
	require.Nil(t, c.Default.CPUAllocationRatio)
	require.Zero(t, c.Neutron.Auth.Timeout)
}

// TestSecretsStayHidden looks for the secrets of a configuration everywhere it may be printed.
func TestSecretsStayHidden(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	text := `
[DEFAULT]
transport_url = rabbit://openstack:hunter2@mq:5672/
[neutron]
metadata_proxy_shared_secret = hunter2
[cinder]
endpoint_template = http://admin:hunter2@cinder/%(project_id)s
`
	c, r, err := Load(sources(t, strings.ReplaceAll(credentials, "placement-pass", secret), text))
	require.NoError(t, err)
	summary, err := c.Summarize(r.Files)
	require.NoError(t, err)
	var b strings.Builder
	require.NoError(t, summary.Write(&b))
	for _, v := range []any{summary, r, c.Default, c.Placement, c.Neutron, &c.Neutron.Auth} {
		data, err := json.Marshal(v)
		require.NoError(t, err)
		fmt.Fprintf(&b, "%v %+v %#v %s\n", v, v, v, data)
	}
	require.NotContains(t, b.String(), secret)
	require.Equal(t, secret, c.Neutron.MetadataProxySharedSecret.Reveal())

	for _, bad := range []string{
		"[DEFAULT]\ntransport_url = amqp://openstack:hunter2@mq/\n",
		"[DEFAULT]\ntransport_url = rabbit://openstack:hunter2@mq:port/\n",
		"[DEFAULT]\ntransport_url = rabbit://openstack:$hunter2@mq/\n",
		"[placement]\npassword = $hunter2\n",
		"[placement]\npassword = ${hunter2}\n",
		"[DEFAULT]\nreport_interval = $transport_url\ntransport_url = rabbit://openstack:hunter2@mq/\n",
		"[DEFAULT]\nhost = $database.connection\n[database]\nconnection = mysql://nova:hunter2@db/nova\n",
		"[DEFAULT]\nhost = $database.connection\n[database]\nconnection = mysql://nova:$hunter2@db/nova\n",
		"[placement]\nhunter2\n",
	} {
		_, r, err := Load(sources(t, credentials, bad))
		require.Error(t, err, bad)
		data, jsonErr := json.Marshal(r)
		require.NoError(t, jsonErr)
		require.NotContains(t, err.Error()+string(data), secret, bad)
	}
}

// TestRealFile reads a control plane's nova.conf (Debian's nova 26.2.2; secrets
// replaced), which serves all of Nova's programs.
func TestRealFile(t *testing.T) {
	t.Parallel()
	c, r, err := Load(Sources{Files: []string{"testdata/nova.conf"}, Dirs: []string{t.TempDir()}})
	require.NoError(t, err)
	require.Empty(t, r.Findings)
	require.Equal(t, "vm", c.Default.Host)
	require.Equal(t, "rabbit://openstack:secret@127.0.0.1:5672/", c.Default.TransportURL.Reveal())
	require.Equal(t, []string{"messagingv2"}, c.MessagingNotifications.Driver)
	require.Equal(t, "both", c.Notifications.NotificationFormat)
	require.Equal(t, "vm_and_task_state", c.Notifications.NotifyOnStateChange)
	require.Equal(t, []string{"http://127.0.0.1:9292"}, c.Glance.APIServers)
	require.True(t, c.ServiceUser.SendServiceUserToken)
	require.Equal(t, "nova", c.ServiceUser.Auth.Username)
	require.Equal(t, "hour", c.Default.InstanceUsageAuditPeriod)
	require.True(t, c.SerialConsole.Enabled)
	require.Empty(t, c.Default.LogDir)
	require.Equal(t, "volumev3:cinderv3:publicURL", c.Cinder.CatalogInfo)
}

func TestComputeDriver(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		value, finding string
		fault          bool
		fake           FakeHost
	}{
		{value: ""},
		{value: "lxc"},
		{value: "libvirt.LibvirtDriver", finding: `warning: "libvirt.LibvirtDriver" is another driver's name, ignored`},
		{value: "nova_lxd.nova.virt.lxd.LXDDriver", finding: "is another driver's name, ignored"},
		{value: "fake.FakeDriver", fake: FakeHost{"fake.FakeDriver", 1000, 800_000, 600_000}},
		{value: "nova.virt.fake.SmallFakeDriver", fake: FakeHost{"fake.SmallFakeDriver", 2, 8192, 1028}},
		{value: "fake.MediumFakeDriver", fake: FakeHost{"fake.MediumFakeDriver", 10, 8192, 1028}},
		{value: "fake.FakeDrive", fault: true, finding: `"fake.FakeDrive" is no driver's name (lxc, or remove the option, for containers; fake.FakeDriver, `},
		{value: "fake.FakeLiveMigrateDriver", fault: true, finding: "is no driver's name"},
		{value: "libvirt", fault: true, finding: "is no driver's name"},
	} {
		conf, r, err := Load(sources(t, credentials, "[DEFAULT]\ncompute_driver = "+c.value+"\n"))
		require.Equal(t, c.fault, err != nil, "%s: %v", c.value, err)
		if c.finding == "" {
			require.Empty(t, r.Findings, c.value)
		} else {
			require.Len(t, r.Findings, 1, c.value)
			require.Contains(t, r.Findings[0].String(), "[DEFAULT] compute_driver: ")
			require.Contains(t, r.Findings[0].String(), c.finding)
		}
		if c.fault {
			continue
		}
		got, ok := conf.Default.FakeHost()
		require.Equal(t, c.fake, got, c.value)
		require.Equal(t, c.fake != FakeHost{}, ok, c.value)
	}
}
