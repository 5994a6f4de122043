package lxc

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// tree is a root file system: path -> content; "-> target" is a link, "fifo" a fifo, "dir" a directory.
type tree map[string]string

func (files tree) make(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755)) // a root file system
		target, link := strings.CutPrefix(content, "-> ")
		switch {
		case link:
			require.NoError(t, os.Symlink(target, path))
		case content == "fifo":
			require.NoError(t, syscall.Mkfifo(path, 0o755))
		case content == "dir":
			require.NoError(t, os.Mkdir(path, 0o755)) // a root file system
		default:
			require.NoError(t, os.WriteFile(path, []byte(content), 0o755)) // a program
		}
	}
	return dir
}

func TestFindInit(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		files tree
		want  string
	}{
		"debian":         {tree{"sbin": "-> usr/sbin", "usr/sbin/init": "-> /lib/systemd/systemd", "lib": "-> usr/lib", "usr/lib/systemd/systemd": "x"}, "systemd"},
		"relative link":  {tree{"sbin/init": "-> ../usr/lib/systemd/systemd", "usr/lib/systemd/systemd": "x"}, "systemd"},
		"alpine":         {tree{"sbin/init": "-> /bin/busybox", "bin/busybox": "x"}, "busybox"},
		"hard link":      {tree{"sbin/init": "junk BusyBox v1.36 junk"}, "busybox"},
		"sysvinit":       {tree{"sbin/init": "ELF /run/initctl"}, "sysvinit"},
		"upstart":        {tree{"sbin/init": "com.ubuntu.Upstart and initctl"}, "upstart"},
		"openrc":         {tree{"sbin/init": "-> openrc-init", "sbin/openrc-init": "x"}, "openrc-init"},
		"runit":          {tree{"sbin/init": "-> runit-init", "sbin/runit-init": "x"}, "runit"},
		"dinit":          {tree{"sbin/init": "-> /usr/bin/dinit", "usr/bin/dinit": "x"}, "dinit"},
		"s6":             {tree{"sbin/init": "#!/bin/execlineb\ns6-linux-init -c /etc/s6"}, "s6"},
		"unknown":        {tree{"sbin/init": "#!/bin/sh"}, "unknown"},
		"climbs up":      {tree{"sbin/init": "-> ../../../../../../bin/busybox", "bin/busybox": "x"}, "busybox"},
		"none":           {tree{"bin/sh": "x"}, ""},
		"to the host":    {tree{"sbin/init": "-> /bin/sh"}, ""}, // the host has one, the image has not
		"through /proc":  {tree{"sbin/init": "-> /proc/1/exe", "proc": "dir"}, ""},
		"loop":           {tree{"sbin/init": "-> init"}, ""},
		"fifo":           {tree{"sbin/init": "fifo"}, ""},
		"directory":      {tree{"sbin/init": "dir"}, ""},
		"no file system": {tree{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := test.files.make(t)
			kind, err := findInit(dir)
			if test.want == "" {
				require.Error(t, err)
				require.Equal(t, "unknown", detectInit(dir).name)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, kind.name)
		})
	}
	dir := tree{"sbin/init": "x"}.make(t)
	require.NoError(t, os.Chmod(filepath.Join(dir, "sbin/init"), 0o644)) // not a secret
	_, err := findInit(dir)
	require.ErrorContains(t, err, "executable")
}
