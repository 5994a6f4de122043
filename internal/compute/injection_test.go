package compute

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/compute/inject"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// rootOf makes the root disk of a server as if its image had accounts, and nothing else in it.
func (w *world) rootOf(id string) string {
	w.t.Helper()
	dir := filepath.Join(w.roots.dir, id)
	require.NoError(w.t, os.RemoveAll(dir))
	require.NoError(w.t, os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
	require.NoError(w.t, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644))
	require.NoError(w.t, os.WriteFile(filepath.Join(dir, "etc/shadow"), []byte("root:*:19000:0:99999:7:::\n"), 0o600))
	return dir
}

// injected tells what of a request is in a root disk.
func injected(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, name := range []string{"root/.ssh/authorized_keys", "meta.js", "etc/motd"} {
		if text, err := os.ReadFile(filepath.Join(root, name)); err == nil {
			found[name] = string(text)
		}
	}
	text, err := os.ReadFile(filepath.Join(root, "etc/shadow"))
	require.NoError(t, err)
	if string(text) != "root:*:19000:0:99999:7:::\n" {
		require.Regexp(t, `^root:\$6\$[^:]+:\d+:0:99999:7:::\n$`, string(text))
		found["etc/shadow"] = "changed"
	}
	return found
}

// buildInjected builds a server with everything that can be injected.
func (w *world) buildInjected(fields map[string]any) string {
	w.t.Helper()
	args := w.buildArgs(map[string]any{"admin_password": "s3cret", "injected_files": [][]string{{"/etc/motd", "aGkK"}}})
	all := map[string]any{"key_data": "ssh-ed25519 AAAA me\n", "metadata": map[string]string{"role": "web"}}
	maps.Copy(all, fields)
	args["instance"] = withFields(w.t, args["instance"], all)
	w.nova.SetInstance(fieldsOf(w.t, args["instance"]))
	root := w.rootOf(uuid)
	w.plugEvents("completed")
	_, err := w.call(user(w.t), "build_and_run_instance", args)
	require.NoError(w.t, err)
	return root
}

const (
	motd         = "hi\n"
	metaJS       = `{"role":"web"}`
	injectedKeys = "# The key of this server's owner, as OpenStack has it\nssh-ed25519 AAAA me\n"
)

func TestInjection(t *testing.T) {
	t.Parallel()
	needRoot(t)
	all := inject.Settings{Enabled: true, Key: true, Password: true}
	for _, c := range []struct {
		name   string
		with   inject.Settings
		fields map[string]any
		want   map[string]string
	}{
		{"off", inject.Settings{Key: true, Password: true}, nil, map[string]string{}},
		{"files and metadata", inject.Settings{Enabled: true}, nil, map[string]string{"meta.js": metaJS, "etc/motd": motd}},
		{"all", all, nil, map[string]string{"meta.js": metaJS, "etc/motd": motd, "root/.ssh/authorized_keys": injectedKeys, "etc/shadow": "changed"}},
		{"no key, no metadata", all, map[string]any{"key_data": nil, "metadata": map[string]string{}}, map[string]string{"etc/motd": motd, "etc/shadow": "changed"}},
		{"config drive", all, map[string]any{"config_drive": "True"}, map[string]string{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(o *Options) { o.Injection = c.with })
			root := w.buildInjected(c.fields)
			require.Equal(t, "active/-/"+testHost, w.nova.States(uuid), "%v", w.nova.Faults())
			require.Equal(t, c.want, injected(t, root))
			_, err := w.operate("terminate_instance", object.TaskStateDeleting, map[string]any{"bdms": nil})
			require.NoError(t, err)
			w.nothingLeft()
		})
	}
}

// TestInjectionIntoNewRoots: each new root disk is written into, with what is known then; one that is there is left alone.
func TestInjectionIntoNewRoots(t *testing.T) {
	t.Parallel()
	needRoot(t)
	w := newWorld(t, func(o *Options) { o.Injection = inject.Settings{Enabled: true, Key: true, Password: true} })
	w.glance.images.add(imageID, "active", nil)
	w.buildInjected(nil)

	_, err := w.operate("stop_instance", object.TaskStatePoweringOff, map[string]any{"clean_shutdown": false})
	require.NoError(t, err)
	root := w.rootOf(uuid)
	_, err = w.operate("start_instance", object.TaskStatePoweringOn, nil)
	require.NoError(t, err)
	require.Empty(t, injected(t, root), "a start")

	rebuild := rebuildArgs(t, imageID)
	rebuild["new_pass"], rebuild["injected_files"] = "other", [][]string{{"/etc/motd", "aG8K"}}
	_, err = w.operate("rebuild_instance", object.TaskStateRebuilding, rebuild)
	require.NoError(t, err)
	want := map[string]string{"meta.js": metaJS, "etc/motd": "ho\n", "root/.ssh/authorized_keys": injectedKeys, "etc/shadow": "changed"}
	require.Equal(t, want, injected(t, root), "a rebuild")

	root = w.rootOf(uuid + rescueSuffix)
	_, err = w.operate("rescue_instance", object.TaskStateRescuing, map[string]any{"rescue_password": nil, "rescue_image_ref": imageID})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"meta.js": metaJS, "root/.ssh/authorized_keys": injectedKeys}, injected(t, root), "a rescue")
	_, err = w.operate("unrescue_instance", object.TaskStateUnrescuing, nil)
	require.NoError(t, err)

	w.glance.images.add(newImage, "queued", nil)
	_, err = w.operate("shelve_instance", object.TaskStateShelving, map[string]any{"image_id": newImage, "clean_shutdown": true, "accel_uuids": []string{}})
	require.NoError(t, err)
	root = w.rootOf(uuid)
	w.unshelve(t)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, map[string]string{"meta.js": metaJS}, injected(t, root), "what is shelved has its key, in whatever form its owner left it")
}

// TestInjectionFails: files are what the user has asked for, and the rest the user may not even know of.
func TestInjectionFails(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for _, c := range []struct{ name, link, state, fault string }{
		{"files", "etc/motd", "error/-/-", `aborted: write the file "/etc/motd" into the root disk: open "/etc/none"`},
		{"key", "root", "active/-/" + testHost, ""},
		{"metadata", "meta.js", "active/-/" + testHost, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(o *Options) { o.Injection = inject.Settings{Enabled: true, Key: true, Password: true} })
			args := w.buildArgs(map[string]any{"admin_password": "s3cret", "injected_files": [][]string{{"/etc/motd", "aGkK"}}})
			root := w.rootOf(uuid)
			require.NoError(t, os.Symlink("none/nothing", filepath.Join(root, c.link)))
			w.plugEvents("completed")
			_, err := w.call(user(t), "build_and_run_instance", args)
			require.NoError(t, err)
			require.Equal(t, c.state, w.nova.States(uuid), "%v", w.nova.Faults())
			if c.fault != "" {
				require.Contains(t, w.nova.Faults()[0], c.fault)
				w.nothingLeft()
			}
		})
	}
	t.Run("no base64", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(o *Options) { o.Injection.Enabled = true })
		w.build(map[string]any{"injected_files": [][]string{{"/x", "%%"}}})
		require.NotEqual(t, "active/-/"+testHost, w.nova.States(uuid))
		w.nothingLeft()
	})
}

func TestInjectionIntoEvacuated(t *testing.T) {
	needRoot(t)
	source, destination := twoHostsWith(t, nil, nil, func(o *Options) { o.Injection = inject.Settings{Enabled: true, Password: true} })
	source.glance.images.add(imageID, "active", nil)
	args := evacuate(source, destination)
	args["new_pass"] = rawJSON(`"s3cret"`)
	root := destination.rootOf(uuid)
	_, err := destination.call(user(t), "rebuild_instance", args)
	require.NoError(t, err)
	require.Equal(t, "active/-/"+otherHost, source.nova.States(uuid))
	require.Equal(t, "changed", injected(t, root)["etc/shadow"])
}
