package config

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// novaOption is one entry of testdata/nova.json: what nova 26 itself declares (testdata/nova.py).
type novaOption struct {
	Group, Name   string
	Default       *string // nil: the host's
	Choices       []string
	Deprecated    [][2]string
	Secret, Multi bool
}

func readNovaOptions(t *testing.T) []novaOption {
	t.Helper()
	data, err := os.ReadFile("testdata/nova.json")
	require.NoError(t, err)
	var options []novaOption
	require.NoError(t, json.Unmarshal(data, &options))
	require.Greater(t, len(options), 500)
	return options
}

// deliberate lists the options whose default differs from Zed's, and why.
func deliberate() map[name]string {
	return map[name]string{
		{defaultSection, "control_exchange"}:                  "nova sets it in nova/config.py",
		{defaultSection, "graceful_shutdown_timeout"}:         "2026.1's",
		{defaultSection, "heal_instance_info_cache_interval"}: "by release",
		{defaultSection, "initial_cpu_allocation_ratio"}:      "by release",
		{defaultSection, "initial_ram_allocation_ratio"}:      "by release",
		{defaultSection, "sync_power_state_pool_size"}:        "2026.1's; the agent has real threads",
		{rabbitSection, "heartbeat_rate"}:                     "2024.1's",
	}
}

func TestRegistryAgreesWithNova(t *testing.T) {
	t.Parallel()
	l := &loader{registry: newRegistry(&Config{}), report: &Report{}, values: map[name]*value{}}
	differs := deliberate()
	for _, n := range readNovaOptions(t) {
		at := name{n.Group, n.Name}
		o := l.registry.byName[at]
		if o == nil {
			list, ok := accepted()[n.Group]
			old := slices.ContainsFunc(l.registry.options, func(o *option) bool { return slices.Contains(o.deprecated, at) })
			assert.True(t, old || ok && (list == nil || slices.Contains(list, n.Name)), "%s is neither used nor accepted", at)
			continue
		}
		assert.Equal(t, n.Secret, o.secret, "%s", at)
		assert.Equal(t, n.Multi, o.multi, "%s", at)
		assert.ElementsMatch(t, n.Choices, o.choices, "%s", at)
		for _, d := range n.Deprecated {
			assert.Contains(t, o.deprecated, name{d[0], d[1]}, "%s", at)
		}
		if n.Default == nil || differs[at] != "" {
			continue
		}
		assert.Equal(t, strings.ToLower(*n.Default), strings.ToLower(o.def), "default of %s", at)
		if *n.Default != "" && !strings.Contains(*n.Default, "$") {
			assert.NoError(t, o.set([]string{*n.Default}), "%s", at)
		}
	}
}
