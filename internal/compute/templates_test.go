package compute

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/compute/glanceimage"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// lxdImage is a unified image with templates.
func lxdImage(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range []struct{ name, text string }{
		{"metadata.yaml", `architecture: amd64
creation_date: 1700000000
properties: {os: Debian}
templates:
  /etc/hostname: {when: [create, copy], template: hostname.tpl}
  /etc/copied: {when: [copy], template: hostname.tpl}
  /etc/started: {when: [start], template: started.tpl}
  /etc/broken: {when: [create], template: broken.tpl}
  /seed/user-data: {when: [create], template: user.tpl, mode: "0600", properties: {default: none}}
  /seed/meta-data: {when: [create], template: meta.tpl}
`},
		{"templates/hostname.tpl", "{{ container.name }}\n"},
		{"templates/started.tpl", `{{ trigger }} {{ config["image.os"] }} {{ devices.eth0.hwaddr }}`},
		{"templates/broken.tpl", "{{ path|shout }}"},
		{"templates/user.tpl", `{{ config_get("user.user-data", properties.default) }}`},
		{"templates/meta.tpl", `instance-id: {{ config_get("volatile.uuid", "") }}
{{ config_get("user.meta-data", "") }}`},
		{"rootfs/etc/os-release", ""},
		{"rootfs/sbin/init", ""},
	} {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.text))}))
		_, err := w.Write([]byte(f.text))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// withFields changes fields of an object on the wire.
func withFields(t testing.TB, raw json.RawMessage, fields map[string]any) json.RawMessage {
	t.Helper()
	var envelope map[string]any
	require.NoError(t, json.Unmarshal(raw, &envelope))
	data, ok := envelope["nova_object.data"].(map[string]any)
	require.True(t, ok)
	maps.Copy(data, fields)
	return novatest.Raw(envelope)
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.glance.data, w.roots.dir = lxdImage(t), t.TempDir()
	w.plugEvents("completed")
	args := w.buildArgs(nil)
	args["instance"] = withFields(t, args["instance"], map[string]any{
		"user_data": base64.StdEncoding.EncodeToString([]byte("#!/bin/sh\n")), "key_data": "ssh-ed25519 AAAA me\n", "hostname": "web-1",
	})
	_, err := w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))

	root := filepath.Join(w.roots.dir, uuid)
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		return string(text)
	}
	require.Equal(t, "web-1\n", read("etc/hostname"))
	require.Equal(t, "#!/bin/sh\n", read("seed/user-data"))
	require.Equal(t, "instance-id: "+uuid+"\npublic-keys: [\"ssh-ed25519 AAAA me\"]", read("seed/meta-data"))
	require.Regexp(t, `^start Debian fa:16:3e:`, read("etc/started"))
	require.NoFileExists(t, filepath.Join(root, "etc/copied"))
	require.NoFileExists(t, filepath.Join(root, "etc/broken"))

	// A start makes what is made at starts, and nothing else.
	_, err = w.operate("stop_instance", object.TaskStatePoweringOff, nil)
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(root, "etc/started")))
	require.NoError(t, os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("mine\n"), 0o600))
	_, err = w.operate("start_instance", object.TaskStatePoweringOn, nil)
	require.NoError(t, err)
	require.Regexp(t, `^start Debian fa:16:3e:`, read("etc/started"))
	require.Equal(t, "mine\n", read("etc/hostname"))

	// One that runs is left alone.
	require.NoError(t, os.Remove(filepath.Join(root, "etc/started")))
	rec, ok, err := w.record(uuid)
	require.NoError(t, err)
	require.True(t, ok)
	require.NoError(t, w.runRecorded(t.Context(), rec))
	require.NoFileExists(t, filepath.Join(root, "etc/started"))
}

// TestSplitImage: the image with the root file system names the one with its metadata.
func TestSplitImage(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ property, state string }{
		"good":    {"5a1ed2a8-7f2c-4c6c-9d5c-2f8f0cf4c001", "active/-/" + testHost},
		"missing": {"5a1ed2a8-7f2c-4c6c-9d5c-2f8f0cf4c002", "error/-/-"},
		"no id":   {"../images", "error/-/-"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.addImage("5a1ed2a8-7f2c-4c6c-9d5c-2f8f0cf4c001", "raw", []byte("architecture: i386\ncreation_date: 7\n"))
			w.plugEvents("completed")
			args := w.buildArgs(map[string]any{"filter_properties": map[string]any{}})
			var img map[string]any
			require.NoError(t, args.Decode("image", &img))
			img["properties"] = map[string]any{glanceimage.MetadataProperty: tc.property}
			args["image"] = novatest.Raw(img)
			_, err := w.call(user(t), "build_and_run_instance", args)
			require.NoError(t, err)
			require.Equal(t, tc.state, w.nova.States(uuid))
			if tc.state[0] == 'e' {
				w.nothingLeft()
				return
			}
			specs, err := w.driver.List(t.Context())
			require.NoError(t, err)
			require.Equal(t, "i686", specs[0].Arch)
		})
	}
}

// TestTemplatesOfSnapshot: a server made of another's snapshot is its copy.
func TestTemplatesOfSnapshot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.glance.data, w.roots.dir = lxdImage(t), t.TempDir()
	w.plugEvents("completed")
	args := w.buildArgs(nil)
	var img map[string]any
	require.NoError(t, args.Decode("image", &img))
	img["properties"] = map[string]any{"image_type": "snapshot"}
	args["image"] = novatest.Raw(img)
	_, err := w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(w.roots.dir, uuid, "etc/copied"))
	require.NoFileExists(t, filepath.Join(w.roots.dir, uuid, "seed/user-data"))
}
