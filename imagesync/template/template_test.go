package template

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/imagesync"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// image has one template for each file text, by target.
func image(t testing.TB, rules map[string]imagesync.Template, files map[string]string) imagesync.Image {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return imagesync.Image{ID: "image", TemplatesDir: dir, Metadata: imagesync.Metadata{Templates: rules}}
}

var vars = Vars{
	Instance: map[string]string{"name": "web-1", "architecture": "x86_64", "type": "container", "privileged": "false", "ephemeral": "false"},
	Config:   map[string]string{"user.user-data": "#cloud-config\n{a: \"<b>\"}\n"},
	Devices:  map[string]map[string]string{"eth0": {"type": "nic", "hwaddr": "fa:16:3e:00:00:01"}},
}

// patience is more than a child takes to begin, on a busy machine too.
const patience = time.Minute

func apply(t testing.TB, img imagesync.Image, root string, triggers ...string) []Warning {
	t.Helper()
	warnings, err := applyWithin(t.Context(), Request{Image: img, Triggers: triggers, Root: root, IDBase: 1_000_000, IDCount: 65536, Vars: vars}, patience)
	require.NoError(t, err)
	return warnings
}

func get(t testing.TB, root, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	require.NoError(t, err)
	return string(text)
}

// TestApply: the templates of published images, as to language and variables.
func TestApply(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(root, "etc"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("a longer name than before\n"), 0o640))
	require.NoError(t, os.WriteFile(filepath.Join(root, "etc/kept"), []byte("kept"), 0o644))
	create := []string{"create", "copy"}
	img := image(t, map[string]imagesync.Template{
		"/etc/hostname": {When: create, Template: "hostname.tpl"},
		"/etc/hosts":    {When: create, Template: "hosts.tpl", Properties: map[string]string{"domain": "example.org"}, Mode: "0600"},
		"/etc/kept":     {When: create, Template: "hostname.tpl", CreateOnly: true},
		"/etc/started":  {When: []string{"start"}, Template: "trigger.tpl"},
		"/var/lib/cloud/seed/nocloud-net/user-data": {When: create, Template: "user.tpl", Properties: map[string]string{"default": "#cloud-config\n{}"}},
		"/root/script": {When: create, Template: "script.tpl", Mode: "755"},
	}, map[string]string{
		"hostname.tpl": "{{ container.name }}\n",
		"hosts.tpl":    "127.0.0.1 localhost\n{% if trigger == \"create\" %}127.0.1.1 {{ instance.name }}.{{ properties.domain }}\n{% endif %}",
		"trigger.tpl":  "{{ trigger }} {{ path }} {{ devices.eth0.hwaddr }}",
		"user.tpl":     `{{ config_get("user.user-data", properties.default) }}`,
		"script.tpl":   `{{ config_get("user.none", "#!/bin/sh") }}{% for k, v in instance sorted %} {{ k }}{% endfor %}`,
	})
	require.Empty(t, apply(t, img, root, Create, Start))
	require.Equal(t, "web-1\n", get(t, root, "etc/hostname"))
	require.Equal(t, "127.0.0.1 localhost\n127.0.1.1 web-1.example.org\n", get(t, root, "etc/hosts"))
	require.Equal(t, "kept", get(t, root, "etc/kept"))
	require.Equal(t, "start /etc/started fa:16:3e:00:00:01", get(t, root, "etc/started"))
	require.Equal(t, vars.Config["user.user-data"], get(t, root, "var/lib/cloud/seed/nocloud-net/user-data"), "nothing is escaped")
	require.Equal(t, "#!/bin/sh architecture ephemeral name privileged type", get(t, root, "root/script"))
	for name, mode := range map[string]os.FileMode{"etc/hostname": 0o640, "etc/hosts": 0o600, "etc/started": 0o644, "root/script": 0o755} {
		info, err := os.Stat(filepath.Join(root, name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), name)
	}
	require.Empty(t, apply(t, img, root, Copy))
	require.Equal(t, "127.0.0.1 localhost\n", get(t, root, "etc/hosts"))
}

func TestNeeded(t *testing.T) {
	t.Parallel()
	img := imagesync.Image{Metadata: imagesync.Metadata{Templates: map[string]imagesync.Template{"/x": {When: []string{"create", "rename"}}}}}
	require.True(t, Needed(img, Create, Start))
	require.False(t, Needed(img, Start))
	require.False(t, Needed(imagesync.Image{}, Create))
}

// TestHostileTemplate: what a template does wrong is a warning, its file stays, and others are written.
func TestHostileTemplate(t *testing.T) {
	t.Parallel()
	nested := strings.Repeat("{% if 1 %}", 100_000)
	for name, tc := range map[string]struct{ text, reason string }{
		"unknown filter":  {"{{ path|shout }}", "shout"},
		"unknown tag":     {"{% run \"id\" %}", "run"},
		"include":         {`{% include "/etc/passwd" %}`, "include"},
		"ssi":             {`{% ssi "/etc/passwd" %}`, "ssi"},
		"import":          {`{% import "/etc/passwd" x %}`, "import"},
		"extends":         {`{% extends "/etc/passwd" %}`, "extends"},
		"syntax":          {"{{ path", "expected"},
		"long":            {"{% for a in \"0123456789\"|make_list %}{% for b in \"0123456789\"|make_list %}" + strings.Repeat("x", 20_000) + "{% endfor %}{% endfor %}", "makes more than"},
		"bomb of padding": {"{{ path|center:2000000000 }}", "died"},
		"bomb of format":  {"{{ 1|stringformat:\"%01000000000d\" }}", ""},
		"recursion":       {"{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}", "died"},
		"nested":          {nested, ""},
		"method":          {"{{ config_get.String() }}", ""},
		"too large":       {strings.Repeat("x", maxText+1), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(root, "z"), []byte("old"), 0o644))
			img := image(t, map[string]imagesync.Template{
				"/a": {When: []string{"create"}, Template: "good"}, "/z": {When: []string{"create"}, Template: "bad"},
			}, map[string]string{"good": "good", "bad": tc.text})
			warnings := apply(t, img, root, Create)
			require.Equal(t, "good", get(t, root, "a"))
			if tc.reason == "" && len(warnings) == 0 {
				require.Less(t, len(get(t, root, "z")), maxText+1) // it may do that
				return
			}
			require.Len(t, warnings, 1)
			require.Equal(t, "/z", warnings[0].Path)
			require.Contains(t, warnings[0].Reason, tc.reason)
			require.Less(t, len(warnings[0].Reason), 700)
			require.Equal(t, "old", get(t, root, "z"))
		})
	}
}

// TestEndless: a template that never ends is ended, and so is the wait for it.
func TestEndless(t *testing.T) {
	t.Parallel()
	loop := "{% for a in s %}{% for b in s %}{% for c in s %}{% for d in s %}{% for e in s %}{% for f in s %}{% for g in s %}{% for h in s %}{% for i in s %}" +
		strings.Repeat("{% endfor %}", 9)
	img := image(t, map[string]imagesync.Template{"/a": {When: []string{"create"}, Template: "t"}, "/b": {When: []string{"create"}, Template: "u"}},
		map[string]string{"t": "{% set s = \"0123456789\"|make_list %}" + loop, "u": "after"})
	root := t.TempDir()
	began := time.Now()
	warnings, err := Apply(t.Context(), Request{Image: img, Triggers: []string{Create}, Root: root, Vars: vars})
	require.NoError(t, err)
	require.Less(t, time.Since(began), renderTimeout+patience)
	require.Len(t, warnings, 2)
	require.NoFileExists(t, filepath.Join(root, "a"))
	require.Contains(t, warnings[1].Reason, "one before it")
}

// TestHostileTargets: nothing outside the root is written or read, whatever the guest has made of its files.
func TestHostileTargets(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, root, outside string)
		path    string
		reason  string // "": it is written …
		written string // … to this file of the root
	}{
		"link out": {func(t *testing.T, root, outside string) {
			t.Helper()
			require.NoError(t, os.Symlink("../outside/secret", filepath.Join(root, "l")))
		}, "/l", "no such file", ""},
		"directory link out": {func(t *testing.T, root, outside string) {
			t.Helper()
			require.NoError(t, os.Symlink("../outside", filepath.Join(root, "l")))
		}, "/l/secret", "file exists", ""},
		"absolute directory link": {func(t *testing.T, root, outside string) {
			t.Helper()
			require.NoError(t, os.Symlink(outside, filepath.Join(root, "l")))
		}, "/l/secret", "file exists", ""},
		"absolute link inside": {func(t *testing.T, root, _ string) {
			t.Helper()
			require.NoError(t, os.Mkdir(filepath.Join(root, "run"), 0o755))
			require.NoError(t, os.Symlink("/run", filepath.Join(root, "var")))
		}, "/var/x", "", "run/x"},
		"link to itself": {func(t *testing.T, root, _ string) {
			t.Helper()
			require.NoError(t, os.Symlink("l", filepath.Join(root, "l")))
		}, "/l", "too many levels", ""},
		"fifo": {func(t *testing.T, root, _ string) {
			t.Helper()
			require.NoError(t, unix.Mkfifo(filepath.Join(root, "p"), 0o644))
		}, "/p", "not a regular file", ""},
		"directory": {func(t *testing.T, root, _ string) {
			t.Helper()
			require.NoError(t, os.Mkdir(filepath.Join(root, "d"), 0o755))
		}, "/d", "not a regular file", ""},
		"file as directory": {func(t *testing.T, root, _ string) {
			t.Helper()
			require.NoError(t, os.WriteFile(filepath.Join(root, "f"), nil, 0o644))
		}, "/f/x", "not a directory", ""},
		"the root":   {func(*testing.T, string, string) {}, "/", "not the name of a file", ""},
		"dots":       {func(*testing.T, string, string) {}, "/./x//y", "", "x/y"},
		"dots above": {func(*testing.T, string, string) {}, "/../../x", "", "x"}, // metadata.yaml has none; all the same
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := t.TempDir()
			root, outside := filepath.Join(base, "root"), filepath.Join(base, "outside")
			require.NoError(t, os.Mkdir(root, 0o755))
			require.NoError(t, os.Mkdir(outside, 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644))
			tc.prepare(t, root, outside)
			img := image(t, map[string]imagesync.Template{tc.path: {When: []string{"create"}, Template: "t"}}, map[string]string{"t": "text"})
			warnings := apply(t, img, root, Create)
			require.Equal(t, "secret", get(t, outside, "secret"))
			if tc.reason == "" {
				require.Empty(t, warnings)
				require.Equal(t, "text", get(t, root, tc.written))
				return
			}
			require.Len(t, warnings, 1)
			require.Contains(t, warnings[0].Reason, tc.reason)
		})
	}
}

// TestHostileTemplatesDir: the directory of templates is the tenant's as well.
func TestHostileTemplatesDir(t *testing.T) {
	t.Parallel()
	img := image(t, map[string]imagesync.Template{
		"/link": {When: []string{"create"}, Template: "link"}, "/gone": {When: []string{"create"}, Template: "gone"}, "/dir": {When: []string{"create"}, Template: "dir"},
		"/uid": {When: []string{"create"}, Template: "good", UID: "70000"}, "/who": {When: []string{"create"}, Template: "good", GID: "staff"},
		"/mode": {When: []string{"create"}, Template: "good", Mode: "999"},
	}, map[string]string{"good": "good"})
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(img.TemplatesDir, "link")))
	require.NoError(t, os.Mkdir(filepath.Join(img.TemplatesDir, "dir"), 0o755))
	root := t.TempDir()
	reasons := map[string]string{}
	for _, w := range apply(t, img, root, Create) {
		reasons[w.Path] = w.Reason
	}
	for path, reason := range map[string]string{
		"/link": "too many levels", "/gone": "no such file", "/dir": "not a regular file", "/uid": "beyond the guest's", "/who": "not a number", "/mode": "octal",
	} {
		require.Contains(t, reasons[path], reason, path)
	}
	require.Len(t, reasons, 6)
}

// TestShift: owners are the guest's where its root file system is.
func TestShift(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("this test needs root")
	}
	root := t.TempDir()
	require.NoError(t, os.Chown(root, 1_000_000, 1_000_000))
	require.NoError(t, os.WriteFile(filepath.Join(root, "mine"), nil, 0o4755))
	require.NoError(t, os.Chown(filepath.Join(root, "mine"), 1_000_033, 1_000_033))
	create := []string{"create"}
	img := image(t, map[string]imagesync.Template{
		"/new/file": {When: create, Template: "t"}, "/user": {When: create, Template: "t", UID: "1000", GID: "100", Mode: "4711"}, "/mine": {When: create, Template: "t"},
	}, map[string]string{"t": "text"})
	require.Empty(t, apply(t, img, root, Create))
	for name, want := range map[string][3]uint32{
		"new": {1_000_000, 1_000_000, 0o755}, "new/file": {1_000_000, 1_000_000, 0o644},
		"user": {1_001_000, 1_000_100, 0o4711}, "mine": {1_000_033, 1_000_033, 0o755},
	} {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(filepath.Join(root, name), &st))
		require.Equal(t, want, [3]uint32{st.Uid, st.Gid, st.Mode & 0o7777}, name)
	}
}

// FuzzTarget: whatever the path, only the root is written.
func FuzzTarget(f *testing.F) {
	for _, path := range []string{"/etc/hostname", "/../x", "/l/x", "/a/l/../../x", "/\x00", strings.Repeat("/a", 3000), "/" + strings.Repeat("n", 300)} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		base := t.TempDir()
		dir := filepath.Join(base, "root")
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, os.Symlink("../..", filepath.Join(dir, "l")))
		r, err := openRoot(dir, 0, 65536)
		require.NoError(t, err)
		defer r.close()
		_ = r.write(path, "text", rule{uid: -1, gid: -1, mode: noMode})
		entries, err := os.ReadDir(base)
		require.NoError(t, err)
		require.Len(t, entries, 1)
	})
}
