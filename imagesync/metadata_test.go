package imagesync

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseMetadata(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ text, err string }{
		"ours":             {"architecture: x86_64\ncreation_date: 1\n", ""},
		"JSON of nova-lxd": {`{"architecture": "x86_64", "creation_date": 1424284563}`, ""},
		"unknown fields":   {"architecture: arm64\ncreation_date: 1\nnew: [1, 2]\n", ""},
		"empty":            {"", "parse"},
		"no architecture":  {"creation_date: 1\n", "no architecture"},
		"strange":          {"architecture: pdp11\ncreation_date: 1\n", "pdp11"},
		"no date":          {"architecture: x86_64\n", "no creation_date"},
		"text as date":     {"architecture: x86_64\ncreation_date: today\n", "parse"},
		"bomb":             {"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nproperties: {x: *e}\n", "parse"},
		"long":             {strings.Repeat("#", maxMetadataBytes+1), "larger"},
		"relative":         {"architecture: x86_64\ncreation_date: 1\ntemplates: {etc/x: {template: x}}\n", "not an absolute"},
		"slash":            {"architecture: x86_64\ncreation_date: 1\ntemplates: {/etc/x: {template: a/b}}\n", "not a file name"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseMetadata(strings.NewReader(tc.text))
			if tc.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tc.err)
		})
	}
}

func TestMakeMetadata(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	m := makeMetadata(Request{ID: "id", HostArch: "aarch64", Properties: map[string]string{"os_distro": "debian"}}, now)
	text, err := m.YAML()
	require.NoError(t, err)
	again, err := ParseMetadata(bytes.NewReader(text))
	require.NoError(t, err)
	require.Equal(t, m, again)
	require.Equal(t, "aarch64", m.Architecture)
	require.False(t, m.Expired(now))
	m.ExpiryDate = now.Unix()
	require.True(t, m.Expired(now.Add(time.Second)))
}

func TestRunsOn(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		image, host string
		want        bool
	}{
		{"x86_64", "x86_64", true},
		{"amd64", "x86_64", true},
		{"i686", "x86_64", true},
		{"x86_64", "i686", false},
		{"armhf", "aarch64", true},
		{"arm64", "x86_64", false},
		{"unknown", "unknown", false},
		{"", "x86_64", false},
	} {
		require.Equal(t, tc.want, runsOn(tc.image, tc.host), "%s on %s", tc.image, tc.host)
	}
}

func FuzzParseMetadata(f *testing.F) {
	f.Add([]byte(unifiedMetadata))
	f.Add([]byte(`{"architecture": "x86_64", "creation_date": 1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseMetadata(bytes.NewReader(data))
		if err != nil {
			return
		}
		for target, template := range m.Templates {
			require.NotContains(t, strings.Split(target, "/"), "..")
			require.NotContains(t, template.Template, "/")
		}
		_, err = m.YAML()
		require.NoError(t, err)
	})
}

func FuzzSniff(f *testing.F) {
	f.Add([]byte("QFI\xfb"))
	f.Add(bytes.Repeat([]byte{0}, 600))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, name := sniff(data)
		require.NotEmpty(t, name)
		require.Less(t, len(name), 200)
	})
}
