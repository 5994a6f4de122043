package lxc

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestLacking(t *testing.T) {
	t.Parallel()
	const (
		proc  = "60 50 0:90 / /proc rw,nosuid - proc proc rw\n"
		other = "99 60 0:91 /f /proc/uptime rw - tmpfs tmpfs rw\n"
	)
	lxcfs := func(device, file string) string {
		return "70 60 " + device + " /" + file + " /" + file + " rw,nosuid master:7 - " + lxcfsType + " lxcfs rw,user_id=0\n"
	}
	all := func(device string) string {
		var b strings.Builder
		for _, f := range lxcfsFiles {
			b.WriteString(lxcfs(device, f))
		}
		return b.String()
	}
	want := func(dead int) []lxcfsWork {
		var work []lxcfsWork
		for _, f := range lxcfsFiles {
			work = append(work, lxcfsWork{f, dead})
		}
		return work
	}
	for name, test := range map[string]struct {
		table string
		want  []lxcfsWork
	}{
		"none":                {proc, want(0)},
		"present":             {proc + all("0:55"), nil},
		"dead":                {proc + all("0:44"), want(1)},
		"dead twice":          {proc + all("0:43") + all("0:44"), want(2)},
		"present, above dead": {proc + all("0:44") + all("0:55"), nil},
		"the guest's own":     {proc + all("0:55") + other, nil},
		"a dead one below the guest's own": {
			proc + strings.ReplaceAll(all("0:55"), lxcfs("0:55", "proc/uptime"), lxcfs("0:44", "proc/uptime")) + other, nil,
		},
		"one dead": {
			proc + strings.ReplaceAll(all("0:55"), lxcfs("0:55", "proc/uptime"), lxcfs("0:44", "proc/uptime")), []lxcfsWork{{"proc/uptime", 1}},
		},
		"nonsense": {"x\n\n - \n" + proc + all("0:55"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := lacking(strings.NewReader(test.table), "0:55")
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestMountedAt(t *testing.T) {
	t.Parallel()
	require.Empty(t, mountedAt("/proc/self"))
	require.Empty(t, mountedAt(t.TempDir()+"/missing"))
	require.Regexp(t, `^0:\d+$`, mountedAt("/proc"))
}

func TestOnOwnThread(t *testing.T) {
	t.Parallel()
	for range 50 {
		require.NoError(t, <-onOwnThread(func() error {
			if unix.Gettid() == unix.Getpid() {
				return unix.EBUSY
			}
			return unix.Unshare(unix.CLONE_FS)
		}))
	}
}
