package controlplane

import (
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"
	"text/template"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/release"
)

func TestWordsOfARule(t *testing.T) {
	t.Parallel()
	require.Equal(t,
		[]string{"FORWARD", "-m", "comment", "--comment", "neutron: all of it", "-j", "neutron-filter-top"},
		words(`FORWARD -m comment --comment "neutron: all of it" -j neutron-filter-top`))
}

func TestEveryFileIsATemplate(t *testing.T) {
	t.Parallel()
	values := map[string]any{
		"Database": "DB", "Host": "h", "Net": OVS, "Password": "p", "Peer": PeerHost, "PhysicalLink": physicalLink, "Plugins": "",
		"Release": releases["epoxy"].settings, "Transport": "T",
	}
	functions := template.FuncMap{"auth": authSection, "token": tokenSection}
	count := 0
	require.NoError(t, fs.WalkDir(files, "files", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		count++
		text, err := files.ReadFile(path)
		require.NoError(t, err)
		parsed, err := template.New(path).Funcs(functions).Option("missingkey=error").Parse(uwsgi + string(text))
		require.NoError(t, err)
		var out strings.Builder
		require.NoError(t, parsed.Execute(&out, values), path)
		require.NotContains(t, out.String(), "{{", path)
		return nil
	}))
	require.Greater(t, count, 15)
}

func TestLibrariesOfAProgram(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"/lib/x86_64-linux-gnu/libz.so.1", "/lib64/ld-linux-x86-64.so.2"}, linked("/usr/sbin/dropbear:\n"+
		"\tlinux-vdso.so.1 (0x00007ffd)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f2c)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f2d)\n"))
}

func TestSSHImageReadsItsConfigDrive(t *testing.T) {
	t.Parallel()
	require.Contains(t, sshFiles["etc/init.d/rcS"], "/etc/init.d/config-drive\n")
	require.NotContains(t, sshFiles["etc/init.d/rcS"], "hostname -F")
}

func TestListenersNameTheirOwner(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, listener.Close()) })
	address, ok := listener.Addr().(*net.TCPAddr)
	require.True(t, ok)
	listening, err := listeners()
	require.NoError(t, err)
	inode, ok := listening[address.Port]
	require.True(t, ok)
	pid, name := owner(inode)
	require.Equal(t, os.Getpid(), pid)
	require.NotEmpty(t, name)
}

func TestMarks(t *testing.T) {
	t.Parallel()
	p, err := New(Options{Base: t.TempDir(), Out: io.Discard})
	require.NoError(t, err)
	require.Equal(t, LinuxBridge, p.Net)
	runs := 0
	step := func() error { runs++; return nil }
	require.NoError(t, p.once("step", step))
	require.NoError(t, p.once("step", step))
	require.Equal(t, 1, runs)
	require.NoError(t, p.setMark("net", OVS))
	again, err := New(Options{Base: p.Base, Out: io.Discard})
	require.NoError(t, err)
	require.Equal(t, OVS, again.Net)
	_, err = New(Options{Net: "token-ring"})
	require.ErrorContains(t, err, "token-ring")
}

func TestAgentConfigKeepsToItsDirectory(t *testing.T) {
	t.Parallel()
	p, err := New(Options{Base: "/base", Net: OVS, Out: io.Discard})
	require.NoError(t, err)
	text, err := p.AgentConfig(p.Host, "/base/agent")
	require.NoError(t, err)
	require.Contains(t, text, "state_path = /base/agent/state\n")
	require.Contains(t, text, "ovsdb_connection = tcp:127.0.0.1:6640\n")
}

func TestReleaseOfADirectory(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	p, err := New(Options{Base: base, Release: "epoxy", Out: io.Discard})
	require.NoError(t, err)
	require.Equal(t, OVS, p.Net, "its only kind of network")
	require.NoError(t, p.setMark("release", p.Release.Name))
	again, err := New(Options{Base: base, Out: io.Discard})
	require.NoError(t, err)
	require.Equal(t, "trixie", again.Release.suite)
	_, err = New(Options{Base: base, Net: LinuxBridge, Out: io.Discard})
	require.ErrorContains(t, err, "epoxy has ovs")
	_, err = New(Options{Base: base, Release: "zed"})
	require.ErrorContains(t, err, "holds a control plane of epoxy")
	_, err = New(Options{Base: base, Release: "yoga"})
	require.ErrorContains(t, err, "epoxy, hibiscus, zed are known")
}

func TestDirectoryOfBeforeTheReleases(t *testing.T) {
	t.Parallel()
	p, err := New(Options{Base: t.TempDir(), Out: io.Discard})
	require.NoError(t, err)
	require.NoError(t, p.setMark("packages", "done"))
	_, err = New(Options{Base: p.Base, Release: "epoxy"})
	require.ErrorContains(t, err, "holds a control plane of zed")
}

func TestEveryReleaseIsOfCompute(t *testing.T) {
	t.Parallel()
	for name, r := range releases {
		_, err := release.ByName(name)
		require.NoError(t, err)
		require.NotEmpty(t, r.nets, name)
		require.Len(t, r.settings.WSGI, 6, name)
	}
}
