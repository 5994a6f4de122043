// Package metadata describes a server to itself: in the documents of its config drive, and in what the metadata service has from
// the compute service, the tags of its devices.
package metadata

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/internal/configdrive"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// ConfigDrive is what the operator says of config drives.
type ConfigDrive struct {
	Force               bool   // [DEFAULT] force_config_drive
	DHCPDomain          string // [api] dhcp_domain
	SkipVersions        string // [api] config_drive_skip_versions
	VendordataProviders []string
	VendordataFile      string // [api] vendordata_jsonfile_path; "": none
}

// ImageConfigDrive is the image property that can demand a config drive.
const ImageConfigDrive = "img_config_drive"

// Content is what a config drive tells of a server besides its row: what only the request
// that makes the guest knows. A zero field is left out of the documents.
type Content struct {
	Files          json.RawMessage // injected_files as they travel: [[path, base64], …]
	Password       string
	SecurityGroups []string
	BDMs           []*object.BlockDeviceMapping
	Info           object.NetworkInfo
	Devices        []*object.Generic
}

// Wanted tells whether a server has a config drive; policy is its image's
// img_config_drive (nova/virt/configdrive.py:required_by).
func (o ConfigDrive) Wanted(inst *object.Instance, policy string) bool {
	return inst.ConfigDrive != "" || o.Force && inst.LaunchedAt.IsZero() || policy == "mandatory"
}

// Fields are what Documents needs loaded of an instance.
var Fields = []string{"metadata", "flavor", "keypairs", "ec2_ids"}

// Documents are the files of a server's config drive, as the release has them.
func (o ConfigDrive) Documents(ctx context.Context, r release.Release, inst *object.Instance, c Content) ([]configdrive.Document, error) {
	server, err := o.describe(ctx, inst, c)
	if err != nil {
		return nil, err
	}
	format := configdrive.Format{SkipEC2: configdrive.Skipped(o.SkipVersions), Epoxy: r.ShareMappings}
	return format.Documents(server)
}

func (o ConfigDrive) describe(ctx context.Context, inst *object.Instance, c Content) (*configdrive.Server, error) {
	s := &configdrive.Server{
		UUID: inst.UUID, ProjectID: inst.ProjectID, DisplayName: nullable(inst.DisplayName), Hostname: inst.Hostname,
		AvailabilityZone: nullable(inst.AvailabilityZone), LaunchIndex: inst.LaunchIndex, ReservationID: nullable(inst.ReservationID),
		Metadata: inst.Metadata, AdminPassword: c.Password, KeyName: inst.KeyName, KeyData: inst.KeyData,
		SecurityGroups: c.SecurityGroups, BlockDevices: blockDevices(inst, c.BDMs), VIFs: driveVIFs(c.Info),
	}
	if domain := o.DHCPDomain; domain != "" {
		s.Hostname += "." + domain
	}
	if inst.Flavor != nil {
		s.FlavorName = inst.Flavor.Name
	}
	if k := inst.Keypairs; k != nil && len(k.Objects) > 0 {
		s.KeyPair = &configdrive.KeyPair{Name: k.Objects[0].Name, Type: k.Objects[0].Type, PublicKey: k.Objects[0].PublicKey}
	}
	var err error
	if inst.UserData != "" {
		if s.UserData, err = base64.StdEncoding.DecodeString(inst.UserData); err != nil {
			return nil, fmt.Errorf("decode user data: %w", err)
		}
	}
	if s.Files, err = Files(c.Files); err != nil {
		return nil, err
	}
	if s.Devices, err = driveDevices(c.Devices); err != nil {
		return nil, err
	}
	if s.EC2, err = ec2IDs(inst.EC2IDs); err != nil {
		return nil, err
	}
	s.VendorData, err = o.vendorData(ctx)
	return s, err
}

func nullable(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// Files reads the files that the API's caller sends (nova/compute/manager.py:_decode_files).
func Files(raw json.RawMessage) ([]configdrive.File, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var pairs [][2]string
	if err := json.Unmarshal(raw, &pairs); err != nil {
		return nil, fmt.Errorf("decode injected files: %w", err)
	}
	files := make([]configdrive.File, 0, len(pairs))
	for _, p := range pairs {
		contents, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(p[1]), ""))
		if err != nil {
			return nil, exception.New("Base64Exception", map[string]any{"path": p[0]}).WithMessage("Invalid Base 64 data for file " + p[0])
		}
		files = append(files, configdrive.File{Path: p[0], Contents: contents})
	}
	return files, nil
}

// ec2IDs reads the object EC2Ids of an instance.
func ec2IDs(o *object.Generic) (configdrive.EC2IDs, error) {
	var ids configdrive.EC2IDs
	if o == nil {
		return ids, nil
	}
	for field, into := range map[string]*string{
		"instance_id": &ids.InstanceID, "ami_id": &ids.AMIID, "kernel_id": &ids.KernelID, "ramdisk_id": &ids.RamdiskID,
	} {
		raw, ok := o.Data[field]
		if !ok {
			continue
		}
		if err := json.Unmarshal(raw, into); err != nil {
			return ids, fmt.Errorf("decode EC2 ids: %w", err)
		}
	}
	return ids, nil
}

// blockDevices are the names that EC2 has for disks (nova/block_device.py:instance_block_mapping).
func blockDevices(inst *object.Instance, bdms []*object.BlockDeviceMapping) map[string]string {
	root := inst.RootDeviceName
	if root == "" {
		root = object.DefaultRootDevice
	}
	names := map[string]string{"ami": strings.TrimPrefix(root, "/dev/"), "root": root}
	ephemerals, volumes := 0, []string{}
	for _, b := range bdms {
		switch {
		case b.DestinationType == "volume":
			volumes = append(volumes, b.DeviceName)
		case b.SourceType == "blank" && b.GuestFormat == "swap":
			names["swap"] = b.DeviceName
		case b.SourceType == "blank":
			names[fmt.Sprintf("ephemeral%d", ephemerals)] = b.DeviceName
			ephemerals++
		}
	}
	slices.Sort(volumes)
	for i, device := range volumes {
		names[fmt.Sprintf("ebs%d", i)] = device
	}
	return names
}

func driveVIFs(info object.NetworkInfo) []configdrive.VIF {
	vifs := make([]configdrive.VIF, 0, len(info))
	for i := range info {
		v := &info[i]
		out := configdrive.VIF{ID: v.ID, NetworkID: v.Network.ID, DevName: v.DevName, Type: v.Type, MAC: v.Address}
		if mtu := v.Network.MTU(); mtu > 0 {
			out.MTU = &mtu
		}
		for j := range v.Network.Subnets {
			out.Subnets = append(out.Subnets, driveSubnet(&v.Network.Subnets[j]))
		}
		vifs = append(vifs, out)
	}
	return vifs
}

func driveSubnet(s *object.Subnet) configdrive.Subnet {
	out := configdrive.Subnet{CIDR: s.CIDR, Version: s.Version, EnableDHCP: s.Meta.Bool("enable_dhcp")}
	s.Meta.Get("dhcp_server", &out.DHCPServer)
	s.Meta.Get("ipv6_address_mode", &out.IPv6AddressMode)
	if s.Gateway != nil {
		out.Gateway = s.Gateway.Address
	}
	for _, d := range s.DNS {
		out.DNS = append(out.DNS, d.Address)
	}
	for _, ip := range s.IPs {
		out.IPs = append(out.IPs, ip.Address)
		for _, f := range ip.FloatingIPs {
			out.FloatingIPs = append(out.FloatingIPs, f.Address)
		}
	}
	for _, r := range s.Routes {
		gateway := ""
		if r.Gateway != nil {
			gateway = r.Gateway.Address
		}
		out.Routes = append(out.Routes, configdrive.Route{CIDR: r.CIDR, Gateway: gateway})
	}
	return out
}

// driveDevices translates what is stored as device_metadata.
func driveDevices(devices []*object.Generic) ([]configdrive.Device, error) {
	var out []configdrive.Device
	for _, d := range devices {
		kind, ok := map[string]string{classNIC: "nic", classDisk: "disk"}[d.Class]
		if !ok {
			continue
		}
		device := configdrive.Device{Type: kind}
		_, device.HasSerial = d.Data["serial"]
		for field, into := range map[string]any{
			"mac": &device.MAC, "tags": &device.Tags, "vlan": &device.VLAN, "vf_trusted": &device.VFTrusted, "serial": &device.Serial,
		} {
			raw, ok := d.Data[field]
			if !ok {
				continue
			}
			if err := json.Unmarshal(raw, into); err != nil {
				return nil, fmt.Errorf("decode %s of %s: %w", field, d.Class, err)
			}
		}
		out = append(out, device)
	}
	return out, nil
}

// vendorData reads the operator's static vendor data (nova/api/metadata/vendordata_json.py).
func (o ConfigDrive) vendorData(ctx context.Context) (any, error) {
	if slices.Contains(o.VendordataProviders, "DynamicJSON") {
		reqctx.Log(ctx).Warning("config drives do not hold dynamic vendor data; the metadata service does")
	}
	if o.VendordataFile == "" || !slices.Contains(o.VendordataProviders, "StaticJSON") {
		return nil, nil
	}
	raw, err := os.ReadFile(o.VendordataFile)
	if err != nil {
		return nil, fmt.Errorf("read [api] vendordata_jsonfile_path: %w", err)
	}
	var data any
	if err := json.Unmarshal(raw, &data); err != nil {
		return nil, fmt.Errorf("decode [api] vendordata_jsonfile_path: %w", err)
	}
	return data, nil
}
