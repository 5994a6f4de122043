package configdrive

import (
	"encoding/base64"
	"encoding/json"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func server() *Server {
	return &Server{
		UUID: "u-1", ProjectID: "p-1", DisplayName: new("web 1"), Hostname: "web-1.novalocal", AvailabilityZone: new("nova"),
		LaunchIndex: 2, ReservationID: new("r-1"), FlavorName: "small", Metadata: map[string]string{"role": "web"},
		AdminPassword: "secret", UserData: []byte("#!/bin/sh\n"), KeyName: "key", KeyData: "ssh-rsa AAA\n",
		KeyPair: &KeyPair{"key", "ssh", "ssh-rsa AAA\n"},
		Files:   []File{{"/etc/motd", []byte("hello\n")}, {"/x", []byte{0, 1}}},
		VIFs: []VIF{{
			ID: "port-1", NetworkID: "net-1", DevName: "tapport-1", Type: "bridge", MAC: "fa:16:3e:00:00:01", MTU: new(1450),
			Subnets: []Subnet{{CIDR: "10.0.0.0/24", Version: 4, IPs: []string{"10.0.0.5"}, DHCPServer: "10.0.0.2", FloatingIPs: []string{"192.0.2.9"}}},
		}},
		Devices: []Device{
			{Type: "nic", MAC: "fa:16:3e:00:00:01", Tags: []string{"front"}},
			{Type: "nic", MAC: "fa:16:3e:00:00:02", VLAN: new(7)},
			{Type: "disk", Tags: []string{"root"}, HasSerial: true},
		},
		SecurityGroups: []string{"default"}, BlockDevices: map[string]string{"ami": "sda", "root": "/dev/sda"},
		EC2: EC2IDs{InstanceID: "i-0000000d", AMIID: "ami-00000001"},
	}
}

func documents(t *testing.T, f Format, s *Server) map[string][]byte {
	t.Helper()
	list, err := f.Documents(s)
	require.NoError(t, err)
	all := map[string][]byte{}
	for _, d := range list {
		require.NotContains(t, all, d.Path)
		require.Equal(t, d.Path, path.Clean(d.Path))
		require.False(t, strings.HasPrefix(d.Path, "/") || strings.Contains(d.Path, ".."))
		all[d.Path] = d.Data
	}
	return all
}

func decoded(t *testing.T, raw []byte) map[string]any {
	t.Helper()
	var m map[string]any
	require.NoError(t, json.Unmarshal(raw, &m), "%s", raw)
	return m
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	all := documents(t, Format{SkipEC2: Skipped("1.0 2007-01-19 2007-03-01 2007-08-29 2007-10-10 2007-12-15 2008-02-01 2008-09-01")}, server())
	ec2, meta := []string{}, []string{}
	for name := range all {
		if version, ok := strings.CutPrefix(name, "ec2/"); ok {
			ec2 = append(ec2, version)
		} else if strings.HasSuffix(name, "meta_data.json") {
			meta = append(meta, name)
		}
	}
	slices.Sort(ec2)
	require.Equal(t, []string{"2009-04-04/meta-data.json", "2009-04-04/user-data", "latest/meta-data.json", "latest/user-data"}, ec2)
	require.Len(t, meta, 10)
	require.Equal(t, "hello\n", string(all["openstack/content/0000"]))
	require.Equal(t, []byte{0, 1}, all["openstack/content/0001"])
	require.Equal(t, "#!/bin/sh\n", string(all["openstack/latest/user_data"]))
	require.JSONEq(t, `{}`, string(all["openstack/latest/vendor_data.json"]))
	require.JSONEq(t, `{"static": {}}`, string(all["openstack/latest/vendor_data2.json"]))
	for name, from := range map[string]string{"vendor_data.json": "2013-10-17", "network_data.json": "2015-10-15", "vendor_data2.json": "2016-10-06"} {
		for _, version := range openstackVersions {
			_, has := all["openstack/"+version+"/"+name]
			require.Equal(t, version >= from, has, "%s of %s", name, version)
		}
	}
	require.NotContains(t, all, "openstack/2025-04-04/meta_data.json")
	require.Contains(t, documents(t, Format{Epoxy: true}, server()), "openstack/2025-04-04/meta_data.json")
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	all := documents(t, Format{}, server())
	m := decoded(t, all["openstack/latest/meta_data.json"])
	seed, err := base64.StdEncoding.DecodeString(m["random_seed"].(string))
	require.NoError(t, err)
	require.Len(t, seed, 512)
	delete(m, "random_seed")
	require.Equal(t, decoded(t, []byte(`{
		"uuid": "u-1", "hostname": "web-1.novalocal", "name": "web 1", "launch_index": 2, "availability_zone": "nova", "project_id": "p-1",
		"meta": {"role": "web"}, "admin_pass": "secret", "dedicated_cpus": [],
		"files": [{"path": "/etc/motd", "content_path": "/content/0000"}, {"path": "/x", "content_path": "/content/0001"}],
		"public_keys": {"key": "ssh-rsa AAA\n"}, "keys": [{"name": "key", "type": "ssh", "data": "ssh-rsa AAA\n"}],
		"devices": [
			{"type": "nic", "mac": "fa:16:3e:00:00:01", "bus": "none", "address": "none", "tags": ["front"], "vf_trusted": false},
			{"type": "nic", "mac": "fa:16:3e:00:00:02", "bus": "none", "address": "none", "vlan": 7, "vf_trusted": false},
			{"type": "disk", "bus": "none", "address": "none", "tags": ["root"], "serial": null}
		]}`)), m)

	first := decoded(t, all["openstack/2012-08-10/meta_data.json"])
	for _, later := range []string{"random_seed", "project_id", "devices", "dedicated_cpus"} {
		require.NotContains(t, first, later)
	}
	devices := decoded(t, all["openstack/2016-06-30/meta_data.json"])["devices"].([]any)
	require.Len(t, devices, 2, "a nic of which the version has nothing to say is left out")

	bare := decoded(t, documents(t, Format{}, &Server{UUID: "u", Hostname: "h"})["openstack/latest/meta_data.json"])
	for _, absent := range []string{"meta", "files", "admin_pass", "public_keys", "keys"} {
		require.NotContains(t, bare, absent)
	}
	require.Nil(t, bare["availability_zone"])
	require.Equal(t, []any{}, bare["devices"])
}

func TestNetworkData(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		vifs []VIF
		want string
	}{
		"none":       {nil, `{}`},
		"no subnets": {[]VIF{{ID: "p"}}, `{"links": [], "networks": [], "services": []}`},
		"dhcp": {server().VIFs, `{
			"links": [{"id": "tapport-1", "vif_id": "port-1", "type": "bridge", "mtu": null, "ethernet_mac_address": "fa:16:3e:00:00:01"}],
			"networks": [{"id": "network0", "type": "ipv4_dhcp", "link": "tapport-1", "network_id": "net-1"}], "services": []}`},
		"static, both families": {[]VIF{{
			ID: "p", NetworkID: "n", DevName: "tapp", Type: "other", MAC: "m", MTU: new(9000),
			Subnets: []Subnet{
				{CIDR: "10.1.0.0/16", Version: 4, IPs: []string{"10.1.0.9"}, Gateway: "10.1.0.1", DNS: []string{"9.9.9.9"}, Routes: []Route{{"10.2.0.0/20", "10.1.0.3"}}},
				{CIDR: "2001:db8::/64", Version: 6, IPs: []string{"2001:db8::9"}, Gateway: "2001:db8::1", IPv6AddressMode: "slaac", DNS: []string{"9.9.9.9"}},
				{CIDR: "10.9.0.0/16", Version: 4, IPs: []string{"10.9.0.9"}},
			},
		}}, `{
			"links": [{"id": "tapp", "vif_id": "p", "type": "phy", "mtu": 9000, "ethernet_mac_address": "m"}],
			"networks": [
				{"id": "network0", "type": "ipv4", "link": "tapp", "network_id": "n", "ip_address": "10.1.0.9", "netmask": "255.255.0.0",
				 "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.1.0.1"}, {"network": "10.2.0.0", "netmask": "255.255.240.0", "gateway": "10.1.0.3"}],
				 "services": [{"type": "dns", "address": "9.9.9.9"}]},
				{"id": "network1", "type": "ipv6_slaac", "link": "tapp", "network_id": "n", "ip_address": "2001:db8::9", "netmask": "ffff:ffff:ffff:ffff::",
				 "routes": [{"network": "::", "netmask": "::", "gateway": "2001:db8::1"}], "services": [{"type": "dns", "address": "9.9.9.9"}]}
			],
			"services": [{"type": "dns", "address": "9.9.9.9"}]}`},
	} {
		all := documents(t, Format{}, &Server{VIFs: c.vifs})
		require.JSONEq(t, c.want, string(all["openstack/latest/network_data.json"]), name)
	}
	_, err := Format{}.Documents(&Server{VIFs: []VIF{{Subnets: []Subnet{{CIDR: "x", Version: 4, IPs: []string{"1.2.3.4"}}}}}})
	require.ErrorContains(t, err, "read subnet")
}

func TestEC2(t *testing.T) {
	t.Parallel()
	all := documents(t, Format{}, server())
	require.Equal(t, decoded(t, []byte(`{
		"ami-id": "ami-00000001", "ami-launch-index": 2, "ami-manifest-path": "FIXME", "instance-id": "i-0000000d", "hostname": "web-1.novalocal",
		"local-ipv4": "10.0.0.5", "reservation-id": "r-1", "security-groups": ["default"], "public-keys": {"0": {"openssh-key": "ssh-rsa AAA\n"}},
		"local-hostname": "web-1.novalocal", "public-hostname": "web-1.novalocal", "public-ipv4": "192.0.2.9", "instance-type": "small",
		"block-device-mapping": {"ami": "sda", "root": "/dev/sda"}, "placement": {"availability-zone": "nova"}, "instance-action": "none"}`)),
		decoded(t, all["ec2/latest/meta-data.json"]))
	require.NotContains(t, decoded(t, all["ec2/1.0/meta-data.json"]), "local-hostname")
}
