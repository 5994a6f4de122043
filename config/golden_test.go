package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// golden is testdata/golden.json: what Python's oslo.config answers (testdata/golden.py).
type golden struct {
	Options []goldenOption
	Parse   []struct {
		Text     string
		Sections map[string]map[string][]string
		Error    int
		Message  string
	}
	Base map[string]goldenValue
	Load []struct {
		Files  []string
		Env    map[string]string
		Values map[string]goldenValue
	}
}

type goldenOption struct {
	Group, Name, Type string
	Default           any
	Min, Max          *float64
	Choices           []string
	Deprecated        [][2]string
}

type goldenValue struct {
	Value any
	Error bool
}

func readGolden(t *testing.T) golden {
	t.Helper()
	data, err := os.ReadFile("testdata/golden.json")
	require.NoError(t, err)
	var g golden
	require.NoError(t, json.Unmarshal(data, &g))
	require.NotEmpty(t, g.Parse)
	require.NotEmpty(t, g.Load)
	return g
}

func TestParseAsOsloConfig(t *testing.T) {
	t.Parallel()
	for i, c := range readGolden(t).Parse {
		entries, errs := parseINI([]byte(c.Text))
		if c.Error > 0 {
			require.NotEmpty(t, errs, "case %d: %q is accepted", i, c.Text)
			// oslo.config names the line where it noticed an option without section, not the option's.
			if c.Message != "Section must be started before assignment" {
				require.Equal(t, c.Error, errs[0].line, "case %d: %q", i, c.Text)
			}
			continue
		}
		require.Empty(t, errs, "case %d: %q is refused", i, c.Text)
		got := map[string]map[string][]string{}
		for _, e := range entries {
			if got[e.section] == nil {
				got[e.section] = map[string][]string{}
			}
			got[e.section][e.key] = append(got[e.section][e.key], e.value)
		}
		for section, keys := range c.Sections {
			if len(keys) > 0 {
				require.Equal(t, keys, got[section], "case %d: %q", i, c.Text)
			}
			delete(got, section)
		}
		require.Empty(t, got, "case %d: %q", i, c.Text)
	}
}

// goldenRegistry declares the golden options the way options_*.go declare ours.
func goldenRegistry(options []goldenOption) *registry {
	r := &registry{config: &Config{}, byName: map[name]*option{}}
	for _, g := range options {
		s := &section{name: g.Group, registry: r}
		var o *option
		switch g.Type {
		case "str":
			o = s.text(new(string), g.Name, "", "")
			o.choices = g.Choices
		case "int":
			o = s.integer(new(int), g.Name, 0, "").none("")
		case "float":
			o = s.float(new(float64), g.Name, 0, "").none("")
		case "bool":
			o = s.boolean(new(bool), g.Name, false, "").none("")
		case "list":
			o = s.list(new([]string), g.Name, "", "")
		case "multi":
			o = s.texts(new([]string), g.Name, "")
		case "dicts":
			o = s.dicts(new([]map[string]string), g.Name, "")
		case "port":
			o = s.integer(new(int), g.Name, 0, "").none("").atLeast(0).atMost(65535)
		case "ip":
			o = s.ip(new(string), g.Name, "", "")
		case "host":
			o = s.host(new(string), g.Name, "", "")
		case "uri":
			o = s.uri(new(string), g.Name, "", "")
		}
		o.minimum, o.maximum = cmpOr(g.Min, o.minimum), cmpOr(g.Max, o.maximum)
		switch d := g.Default.(type) {
		case string:
			o.def = d
		case float64:
			o.def = number(d)
		case bool:
			o.def = strconv.FormatBool(d)
		}
		for _, d := range g.Deprecated {
			o.was(d[0], d[1])
		}
	}
	return r
}

func cmpOr(a, b *float64) *float64 {
	if a != nil {
		return a
	}
	return b
}

func TestLoadAsOsloConfig(t *testing.T) {
	t.Parallel()
	g := readGolden(t)
	for i, c := range g.Load {
		s := Sources{Dirs: []string{t.TempDir()}}
		for j, text := range c.Files {
			p := filepath.Join(s.Dirs[0], strconv.Itoa(j))
			require.NoError(t, os.WriteFile(p, []byte(text), 0o600))
			s.Files = append(s.Files, p)
		}
		for k, v := range c.Env {
			s.Env = append(s.Env, k+"="+v)
		}
		l := &loader{registry: goldenRegistry(g.Options), report: &Report{}, env: s.environment(), values: map[name]*value{}}
		l.files = s.read(l.report)
		require.Empty(t, l.report.Findings, "case %d: %q", i, c.Files)
		for _, o := range l.registry.options {
			want, ok := c.Values[o.section+"."+o.option]
			if !ok {
				want = g.Base[o.section+"."+o.option]
			}
			got := goldenResult(t, l, o)
			if want.Value == nil && !want.Error && o.number && o.def != "" {
				// An empty number: None there, the default here.
				want = goldenValue{Value: 7.0}
			}
			assert.Equal(t, want, got, "case %d, %s: %q env %v; findings %v", i, o.name, c.Files, c.Env, l.report.Findings)
		}
	}
}

// goldenResult resolves an option and gives its value as JSON would.
func goldenResult(t *testing.T, l *loader, o *option) goldenValue {
	t.Helper()
	v := l.resolve(o)
	switch {
	case v.failed:
		require.NotEmpty(t, l.report.Faults())
		return goldenValue{Error: true}
	case v.unset:
		return goldenValue{}
	}
	data, err := json.Marshal(o.field)
	require.NoError(t, err)
	var out any
	require.NoError(t, json.Unmarshal(data, &out))
	if out == nil { // an empty list
		out = []any{}
	}
	return goldenValue{Value: out}
}
