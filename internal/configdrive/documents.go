package configdrive

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Versions of the metadata, oldest first (nova/api/metadata/base.py:VERSIONS, OPENSTACK_VERSIONS).
var (
	ec2Versions = []string{
		"1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01", "2008-09-01", "2009-04-04",
	}
	openstackVersions = []string{
		"2012-08-10", grizzly, havana, liberty, newtonOne, newtonTwo, ocata, rocky, victoria,
	}
)

// Versions that brought something; a version is compared as text.
const (
	grizzly   = "2013-04-04"
	havana    = "2013-10-17"
	liberty   = "2015-10-15"
	newtonOne = "2016-06-30"
	newtonTwo = "2016-10-06"
	ocata     = "2017-02-22"
	rocky     = "2018-08-27"
	victoria  = "2020-10-14"
	epoxy     = "2025-04-04"
	latest    = "latest"
)

// randomSeed is how many bytes of random_seed a guest gets.
const randomSeed = 512

// Document is one file of a drive.
type Document struct {
	Path string // relative, with slashes
	Data []byte
}

// Format says which documents there are.
type Format struct {
	SkipEC2 []string // [api] config_drive_skip_versions
	Epoxy   bool     // the control plane knows the version 2025-04-04
}

// Documents are the files of a server's drive, in Nova's order
// (nova/api/metadata/base.py:InstanceMetadata.metadata_for_config_drive).
func (f Format) Documents(s *Server) ([]Document, error) {
	b := &builder{server: s}
	for _, version := range append(slices.Clone(ec2Versions), latest) {
		if slices.Contains(f.SkipEC2, version) {
			continue
		}
		if s.UserData != nil {
			b.add(path.Join("ec2", version, "user-data"), s.UserData)
		}
		b.json(path.Join("ec2", version, "meta-data.json"), s.ec2(version))
	}
	versions := slices.Clone(openstackVersions)
	if f.Epoxy {
		versions = append(versions, epoxy)
	}
	network, err := describeNetwork(s.VIFs)
	if err != nil {
		return nil, err
	}
	vendor := s.VendorData
	if vendor == nil {
		vendor = map[string]any{}
	}
	for _, version := range append(versions, latest) {
		in := func(name string) string { return path.Join("openstack", version, name) }
		meta, err := s.metadata(version)
		if err != nil {
			return nil, err
		}
		b.json(in("meta_data.json"), meta)
		if s.UserData != nil {
			b.add(in("user_data"), s.UserData)
		}
		if since(version, havana) {
			b.json(in("vendor_data.json"), vendor)
		}
		if since(version, liberty) {
			b.json(in("network_data.json"), network)
		}
		if since(version, newtonTwo) {
			b.json(in("vendor_data2.json"), map[string]any{"static": vendor})
		}
	}
	for i, file := range s.Files {
		b.add("openstack"+contentPath(i), file.Contents)
	}
	return b.documents, b.err
}

// since tells whether a version is another or came after it; "latest" is the newest of all.
func since(version, other string) bool {
	return version == latest || version >= other
}

// contentPath is where an injected file's contents are, below "openstack".
func contentPath(number int) string { return fmt.Sprintf("/content/%04d", number) }

// builder keeps the first error.
type builder struct {
	server    *Server
	documents []Document
	err       error
}

func (b *builder) add(name string, data []byte) {
	b.documents = append(b.documents, Document{name, data})
}

func (b *builder) json(name string, v any) {
	data, err := json.Marshal(v)
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("encode %s: %w", name, err)
	}
	b.add(name, data)
}

// metadata is meta_data.json (nova/api/metadata/base.py:InstanceMetadata._metadata_as_json).
func (s *Server) metadata(version string) (map[string]any, error) {
	m := map[string]any{
		"uuid": s.UUID, "hostname": s.Hostname, "name": s.DisplayName, "launch_index": s.LaunchIndex,
		"availability_zone": s.AvailabilityZone,
	}
	if len(s.Metadata) > 0 {
		m["meta"] = s.Metadata
	}
	if len(s.Files) > 0 {
		files := make([]map[string]string, 0, len(s.Files))
		for i, f := range s.Files {
			files = append(files, map[string]string{"path": f.Path, "content_path": contentPath(i)})
		}
		m["files"] = files
	}
	if s.AdminPassword != "" {
		m["admin_pass"] = s.AdminPassword
	}
	if k := s.KeyPair; s.KeyName != "" && k != nil {
		m["public_keys"] = map[string]string{k.Name: k.PublicKey}
		m["keys"] = []map[string]string{{"name": k.Name, "type": k.Type, "data": k.PublicKey}}
	}
	if since(version, grizzly) {
		seed := make([]byte, randomSeed)
		if _, err := rand.Read(seed); err != nil {
			return nil, fmt.Errorf("make random seed: %w", err)
		}
		m["random_seed"] = base64.StdEncoding.EncodeToString(seed)
	}
	if since(version, liberty) {
		m["project_id"] = s.ProjectID
	}
	if since(version, newtonOne) {
		m["devices"] = s.devices(version)
	}
	if since(version, victoria) {
		m["dedicated_cpus"] = []int{} // the agent tells Nova of no NUMA topology
	}
	return m, nil
}

// devices is the part of meta_data.json about devices; one of which a version has nothing to
// say is left out (nova/api/metadata/base.py:InstanceMetadata._get_device_metadata).
func (s *Server) devices(version string) []map[string]any {
	out := []map[string]any{}
	for i := range s.Devices {
		d := &s.Devices[i]
		m := map[string]any{"type": d.Type, "bus": "none", "address": "none"}
		if d.Tags != nil {
			m["tags"] = d.Tags
		}
		if d.Type == "nic" {
			m["mac"] = d.MAC
			said := d.Tags != nil
			if d.VLAN != nil && since(version, ocata) {
				m["vlan"], said = *d.VLAN, true
			}
			if since(version, rocky) {
				m["vf_trusted"], said = d.VFTrusted, true
			}
			if !said {
				continue
			}
		}
		if d.HasSerial {
			m["serial"] = d.Serial
		}
		out = append(out, m)
	}
	return out
}

// ec2 is meta-data.json (nova/api/metadata/base.py:InstanceMetadata.get_ec2_metadata).
func (s *Server) ec2(version string) map[string]any {
	var fixed, floating string
	for _, v := range s.VIFs {
		for _, subnet := range v.Subnets {
			if subnet.Version == 4 && fixed == "" && len(subnet.IPs) > 0 {
				fixed = subnet.IPs[0]
			}
			if floating == "" && len(subnet.FloatingIPs) > 0 {
				floating = subnet.FloatingIPs[0]
			}
		}
	}
	groups := s.SecurityGroups
	if groups == nil {
		groups = []string{}
	}
	m := map[string]any{
		"ami-id": s.EC2.AMIID, "ami-launch-index": s.LaunchIndex, "ami-manifest-path": "FIXME", "instance-id": s.EC2.InstanceID,
		"hostname": s.Hostname, "local-ipv4": null(fixed), "reservation-id": s.ReservationID, "security-groups": groups,
	}
	if s.KeyName != "" {
		m["public-keys"] = map[string]any{"0": map[string]string{"openssh-key": s.KeyData}}
	}
	if since(version, "2007-01-19") {
		m["local-hostname"], m["public-hostname"], m["public-ipv4"] = s.Hostname, s.Hostname, floating
	}
	if since(version, "2007-08-29") {
		m["instance-type"] = s.FlavorName
	}
	if since(version, "2007-12-15") {
		m["block-device-mapping"] = s.BlockDevices
		if s.EC2.KernelID != "" {
			m["kernel-id"] = s.EC2.KernelID
		}
		if s.EC2.RamdiskID != "" {
			m["ramdisk-id"] = s.EC2.RamdiskID
		}
	}
	if since(version, "2008-02-01") {
		m["placement"] = map[string]any{"availability-zone": s.AvailabilityZone}
	}
	if since(version, "2008-09-01") {
		m["instance-action"] = "none"
	}
	return m
}

func null(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// Skipped splits [api] config_drive_skip_versions.
func Skipped(option string) []string { return strings.Fields(option) }
