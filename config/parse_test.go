package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseCPUs(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]CPUSet{
		"":             nil,
		"3":            {3},
		"1-4,^3,6":     {1, 2, 4, 6},
		"0-7,^2-5":     {0, 1, 6, 7},
		" 1 , 2 - 3 ,": {1, 2, 3}, //nolint:gocritic // spaces are allowed
		"5,5,4-5":      {4, 5},
	} {
		got, err := parseCPUs(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"a", "4-1", "-1", "1-", "^", "1,^1", ",", "1-2-3", "0-9999999999", "99999999999999999999"} {
		_, err := parseCPUs(text)
		require.Error(t, err, text)
	}
}

func TestParseIDs(t *testing.T) {
	t.Parallel()
	got, err := parseIDs("1000000:1000000000")
	require.NoError(t, err)
	require.Equal(t, &IDRange{Base: 1000000, Size: 1000000000}, got)
	for _, text := range []string{"0:1", "1", "1:", ":1", "1:0", "4294967295:1", "1:4294967295", "-1:5", "1:2:3", "1 : 2"} {
		_, err := parseIDs(text)
		require.Error(t, err, text)
	}
}

func TestParseRelease(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"auto": "auto", "Zed": "zed", "2023.1": "antelope", "2026.2": "hibiscus", "2025.1 Epoxy": "epoxy"} {
		got, err := parseRelease(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got)
	}
	for _, text := range []string{"", "yoga", "2022.2", "epoxy flamingo", "2025.1 zed", "auto auto"} {
		_, err := parseRelease(text)
		require.Error(t, err, text)
	}
}

func TestParseTransport(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Transport{
		"rabbit://":         {Hosts: []string{"localhost:5672"}, VirtualHost: "/"},
		"rabbit://u:p@h":    {Hosts: []string{"h:5672"}, VirtualHost: "/"},
		"rabbit://u:p@h:1/": {Hosts: []string{"h:1"}, VirtualHost: "/"},
		"rabbit://u:p%40@h:1,u:p@[::1]:2/no%2Fva": {Hosts: []string{"h:1", "[::1]:2"}, VirtualHost: "no/va"},
		"rabbit://u:p@x@[fe80::1]//?ssl=1":        {Hosts: []string{"[fe80::1]:5672"}, VirtualHost: "/"},
		"kombu+memory://h/v":                      {Hosts: []string{"h:5672"}, VirtualHost: "v"},
	} {
		got, err := ParseTransport(Secret(text))
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "h", "amqp://h", "rabbit://u:pa/ss@h/", "rabbit://h:0/", "rabbit://h:99999/", "rabbit://h/%zz"} {
		_, err := ParseTransport(Secret(text))
		require.Error(t, err, text)
	}
	require.Equal(t, "rabbit://h:1,i:2/nova", Transport{Hosts: []string{"h:1", "i:2"}, VirtualHost: "nova"}.String())
	require.Equal(t, "rabbit://h:1/", Transport{Hosts: []string{"h:1"}, VirtualHost: "/"}.String())
}

func TestWithoutUser(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                      "",
		"http://h:1/p@q":        "http://h:1/p@q",
		"http://u:p@h:1/p":      "http://h:1/p",
		"http://u:p@x@h":        "http://h",
		"catalog: image public": "catalog: image public",
	} {
		require.Equal(t, want, withoutUser(in))
	}
}

func TestEditDistance(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"image_dir", "image_dirs", 1}, {"kitten", "sitting", 3}} {
		require.Equal(t, c.want, editDistance(c.a, c.b))
	}
}

func TestParseShares(t *testing.T) {
	t.Parallel()
	got, err := parseShares("data:/srv/data, tools:/opt/tools/:ro")
	require.NoError(t, err)
	require.Equal(t, []Share{{Name: "data", Path: "/srv/data"}, {Name: "tools", Path: "/opt/tools", ReadOnly: true}}, got)
}
