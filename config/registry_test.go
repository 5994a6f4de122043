package config

import (
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// leaves lists the addresses of all fields that options should be bound to, with their path.
func leaves(v reflect.Value, path string, out map[any]string) {
	for i := range v.NumField() {
		f, name := v.Field(i), path+"."+v.Type().Field(i).Name
		if f.Kind() == reflect.Struct && f.Type() != reflect.TypeFor[PortRange]() {
			leaves(f, name, out)
			continue
		}
		out[f.Addr().Interface()] = name
	}
}

func TestEveryFieldHasOneOption(t *testing.T) {
	t.Parallel()
	c := &Config{}
	fields := map[any]string{}
	leaves(reflect.ValueOf(c).Elem(), "", fields)
	bound := map[any]string{}
	for _, o := range newRegistry(c).options {
		path, ok := fields[o.field]
		require.True(t, ok, "%s is bound to no field of Config", o.name)
		other, ok := bound[o.field]
		require.False(t, ok, "%s and %s share a field", o.name, other)
		bound[o.field] = o.String()
		parts := strings.Split(path, ".")
		want := strings.ToLower(strings.ReplaceAll(o.option, "_", ""))
		got := strings.ToLower(parts[len(parts)-1])
		if parts[len(parts)-2] == "Auth" {
			want = strings.TrimPrefix(want, "auth")
		}
		require.Equal(t, want, got, "field %s is not named after %s", path, o.name)
	}
	for f, path := range fields {
		_, ok := bound[f]
		if strings.Contains(path, ".Auth.") {
			continue // no section has all of keystoneauth's options; TestAuthSections looks at them
		}
		require.True(t, ok, "field %s has no option", path)
	}
}

func TestRegistryIsConsistent(t *testing.T) {
	t.Parallel()
	r := newRegistry(&Config{})
	seen := map[name]bool{}
	for _, o := range r.options {
		require.False(t, seen[o.name], "%s is declared twice", o.name)
		seen[o.name] = true
		require.True(t, strings.HasSuffix(o.help, "."), "%s: help is no sentence: %q", o.name, o.help)
		require.Equal(t, strings.ToLower(o.option), o.option)
		require.True(t, o.def == "" || o.computed == nil, "%s has two defaults", o.name)
		if o.secret {
			require.IsType(t, new(Secret), o.field, "%s", o.name)
		}
		if o.def != "" && !strings.Contains(o.def, "$") {
			require.NoError(t, o.set([]string{o.def}), "default of %s", o.name)
			o.reset()
		}
	}
	for section, names := range accepted() {
		for _, n := range names {
			require.False(t, seen[name{section, n}], "[%s] %s is accepted and used", section, n)
		}
	}
}

func TestNewHasTheDefaults(t *testing.T) {
	t.Parallel()
	c := New()
	require.Equal(t, "/var/lib/nova/instances", c.Default.InstancesPath)
	require.Equal(t, "/var/lib/nova/compute-agent/images", c.LXC.ImageDir)
	require.Equal(t, c.Default.MyIP, c.Default.MyBlockStorageIP)
	require.NotEmpty(t, c.Default.Host)
	require.Nil(t, c.Default.CPUAllocationRatio)
	require.Nil(t, c.LXC.IDRange)
	require.Equal(t, uint32(65536), c.LXC.IDsPerInstance)
	require.Equal(t, []string{"internal", "public"}, c.Placement.Auth.ValidInterfaces)
	require.Equal(t, PortRange{First: 10000, Last: 20000}, c.SerialConsole.PortRange)
	require.Equal(t, "rabbit://", c.Default.TransportURL.Reveal())
}
