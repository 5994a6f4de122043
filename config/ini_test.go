package config

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseGoesOnAfterAnError(t *testing.T) {
	t.Parallel()
	entries, errs := parseINI([]byte("[a]\nx = 1\nbroken\n  belongs to broken\ny = 2\n y2\n[b\n[c]\nz = 3"))
	require.Equal(t, []entry{
		{section: "a", key: "x", value: "1", line: 2},
		{section: "a", key: "y", value: "2\ny2", line: 5},
		{section: "c", key: "z", value: "3", line: 9},
	}, entries)
	require.Len(t, errs, 2)
	require.Equal(t, 3, errs[0].line)
	require.Equal(t, 7, errs[1].line)
}

// render writes entries as a file that parses to the same entries.
func render(entries []entry) string {
	var b strings.Builder
	section := ""
	for _, e := range entries {
		if e.section != section {
			section = e.section
			b.WriteString("[" + section + "]\n")
		}
		first, rest, more := strings.Cut(e.value, "\n")
		// A no-break space keeps a strange name from being a comment or a section; it is stripped.
		b.WriteString("\u00a0" + e.key + " = \"" + first + "\"\n")
		if more {
			b.WriteString("\t" + strings.ReplaceAll(rest, "\n", "\n\t") + "\n")
		}
	}
	return b.String()
}

func FuzzParseINI(f *testing.F) {
	f.Add("[DEFAULT]\nk = v\n more\n# c\nk: 'w'\n")
	f.Add("k=v\n[a\n[]\n=\n\tx\r\r\n")
	f.Add("[\u00a0]\n\u00a0#k='\n \u2028\n")
	f.Fuzz(func(t *testing.T, text string) {
		entries, errs := parseINI([]byte(text))
		if len(errs) > 0 {
			return
		}
		again, errs := parseINI([]byte(render(entries)))
		require.Empty(t, errs)
		for _, list := range [][]entry{entries, again} {
			for i := range list {
				list[i].line = 0
			}
		}
		require.True(t, slices.Equal(entries, again), "%q\n%q", entries, again)
	})
}

func FuzzLoad(f *testing.F) {
	f.Add("[DEFAULT]\nhost = $my_ip\nmy_ip = ${neutron.ovs_bridge}\n[neutron]\novs_bridge = $host\n")
	f.Add(credentials + "[lxc]\nrelease = $release\nid_range = 1:4294967295\n[compute]\ncpu_shared_set = ^1,0-9,,\n")
	f.Add("[placement]\nauth_section = neutron\n[neutron]\nauth_section = $placement.auth_section\n[oslo_messaging_rabbit]\nkombu_reconnect_delay=4.6\n")
	f.Fuzz(func(t *testing.T, text string) {
		c := &Config{}
		l := &loader{registry: newRegistry(c), report: &Report{}, values: map[name]*value{}}
		l.files = []*file{parseFile("fuzz", []byte(text), l.report)}
		for _, o := range l.registry.options {
			l.resolve(o)
		}
		l.unknownOptions()
		l.check()
		for _, finding := range l.report.Findings {
			require.NotEmpty(t, finding.Message)
		}
		if len(l.report.Faults()) == 0 {
			_, err := c.Summarize(nil)
			require.NoError(t, err)
			require.NotEmpty(t, c.Default.Host)
			require.NotEmpty(t, c.LXC.StateDir)
		}
	})
}
