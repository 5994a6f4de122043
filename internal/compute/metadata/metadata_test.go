package metadata

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
)

func TestDevices(t *testing.T) {
	t.Parallel()
	r := release.Oldest()
	info := object.NetworkInfo{{ID: "tagged", Address: "fa:16:3e:00:00:01"}, {ID: "plain", Address: "fa:16:3e:00:00:02"}}
	bdms := []*object.BlockDeviceMapping{{DeviceName: "/dev/sda"}, {DeviceName: "/dev/sdb", Tag: "data"}}
	none, err := DescribeDevices(r, info[1:], nil, bdms[:1])
	require.NoError(t, err)
	require.Nil(t, none, "nothing has a tag")

	all, err := DescribeDevices(r, info, map[string]string{"tagged": "front"}, bdms)
	require.NoError(t, err)
	raw, err := json.Marshal(all) // as it is stored
	require.NoError(t, err)
	stored := &object.Generic{}
	require.NoError(t, json.Unmarshal(raw, stored))
	devices, err := UnpackDevices(stored)
	require.NoError(t, err)
	require.Len(t, devices, 2)
	require.Equal(t, []string{classNIC, classDisk}, []string{devices[0].Class, devices[1].Class})
	require.JSONEq(t, `["front"]`, string(devices[0].Data["tags"]))
	require.JSONEq(t, `["data"]`, string(devices[1].Data["tags"]))

	require.Len(t, WithoutNIC(devices, "fa:16:3e:00:00:02"), 2)
	rest := WithoutNIC(devices, "fa:16:3e:00:00:01")
	require.Equal(t, devices[1:], rest)
	described, err := driveDevices(devices)
	require.NoError(t, err)
	require.Equal(t, "nic", described[0].Type)
	require.Equal(t, "fa:16:3e:00:00:01", described[0].MAC)
	require.Equal(t, []string{"data"}, described[1].Tags)

	none, err = PackDevices(r, nil)
	require.NoError(t, err)
	require.JSONEq(t, "[]", string(none.Data["devices"]), "a list, and not null")
	devices, err = UnpackDevices(nil)
	require.NoError(t, err)
	require.Empty(t, devices)
}

func TestWanted(t *testing.T) {
	t.Parallel()
	launched := &object.Instance{LaunchedAt: object.Now()}
	asked := &object.Instance{ConfigDrive: "True", LaunchedAt: object.Now()}
	require.False(t, ConfigDrive{}.Wanted(&object.Instance{}, "optional"))
	require.True(t, ConfigDrive{}.Wanted(asked, ""))
	require.True(t, ConfigDrive{}.Wanted(launched, "mandatory"))
	require.True(t, ConfigDrive{Force: true}.Wanted(&object.Instance{}, ""))
	require.False(t, ConfigDrive{Force: true}.Wanted(launched, ""), "one that was made without keeps none")
}

func TestBlockDevices(t *testing.T) {
	t.Parallel()
	bdms := []*object.BlockDeviceMapping{
		{SourceType: "image", DestinationType: "local", DeviceName: "/dev/sda"},
		{SourceType: "blank", DestinationType: "local", DeviceName: "/dev/sdb"},
		{SourceType: "blank", DestinationType: "local", GuestFormat: "swap", DeviceName: "/dev/sdc"},
		{SourceType: "volume", DestinationType: "volume", DeviceName: "/dev/sde"},
		{SourceType: "volume", DestinationType: "volume", DeviceName: "/dev/sdd"},
	}
	require.Equal(t, map[string]string{
		"ami": "sda", "root": "/dev/sda", "ephemeral0": "/dev/sdb", "swap": "/dev/sdc", "ebs0": "/dev/sdd", "ebs1": "/dev/sde",
	}, blockDevices(&object.Instance{}, bdms))
	require.Equal(t, map[string]string{"ami": "vda", "root": "/dev/vda"}, blockDevices(&object.Instance{RootDeviceName: "/dev/vda"}, nil))
}

func TestFiles(t *testing.T) {
	t.Parallel()
	files, err := Files(json.RawMessage(`[["/etc/motd", "aG\nkK"]]`))
	require.NoError(t, err)
	require.Len(t, files, 1)
	require.Equal(t, "hi\n", string(files[0].Contents), "base64 may be broken into lines")
	_, err = Files(json.RawMessage(`[["/etc/motd", "%%"]]`))
	require.True(t, exception.Is(err, "Base64Exception"), "%v", err)
	_, err = Files(json.RawMessage(`{}`))
	require.ErrorContains(t, err, "decode injected files")
}
