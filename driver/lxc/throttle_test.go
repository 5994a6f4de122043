package lxc

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// TestThrottleWarnings: limits that do not hold are told of, and why. Not parallel: the log is the process's.
func TestThrottleWarnings(t *testing.T) {
	var log bytes.Buffer
	logger := reqctx.Log(t.Context()).Logger
	out := logger.Out
	logger.SetOutput(&log)
	t.Cleanup(func() { logger.SetOutput(out) })

	groups := func(lay layout, controllers ...string) cgroups {
		dir := t.TempDir()
		if lay == layoutV2 {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte(strings.Join(controllers, " ")+"\n"), 0o600))
			return cgroups{layout: lay, dirs: map[string]string{unified: dir}}
		}
		cg := cgroups{layout: lay, dirs: map[string]string{}}
		for _, c := range controllers {
			cg.dirs[c] = filepath.Join(dir, c)
		}
		return cg
	}
	limits := flavor.DiskLimits{WriteIOPSSec: 100}
	shared, own := storage.Device{Number: "8:0"}, storage.Device{Number: "7:3", Own: true}
	const (
		without  = "quota:disk limits are not enforced at all: the host's cgroups have no controller "
		noDevice = "quota:disk limits are not enforced at all: the file system below the server's disks has no block device"
		later    = "quota:disk limits are not enforced on what is written back later: the server's disks share a device with others, and cgroup v1 does not know whose data that is"
	)
	type devices = []storage.Device
	for name, c := range map[string]struct {
		cgroups cgroups
		limits  flavor.DiskLimits
		found   devices
		want    devices // that are throttled
		warning string
	}{
		"v2 without the controller":     {groups(layoutV2, "cpu", "memory"), limits, devices{own}, nil, without + "io"},
		"v1 without the controller":     {groups(layoutV1, "io", "memory"), limits, devices{own}, nil, without + "blkio"},
		"hybrid without the controller": {groups(layoutHybrid, unified), limits, devices{own}, nil, without + "blkio"},
		"v2 without a device":           {groups(layoutV2, "io"), limits, nil, nil, noDevice},
		"v1 without a device":           {groups(layoutV1, "blkio"), limits, nil, nil, noDevice},
		"v1, shared":                    {groups(layoutV1, "blkio"), limits, devices{shared}, devices{shared}, later},
		"hybrid, one of two shared":     {groups(layoutHybrid, "blkio"), limits, devices{own, shared}, devices{own, shared}, later},
		"v1, its own":                   {groups(layoutV1, "blkio"), limits, devices{own}, devices{own}, ""},
		"v2, shared":                    {groups(layoutV2, "io"), limits, devices{shared}, devices{shared}, ""},
		"v2, its own":                   {groups(layoutV2, "io"), limits, devices{own}, devices{own}, ""},
		"no limits":                     {groups(layoutV2), flavor.DiskLimits{}, devices{own}, nil, ""},
	} {
		log.Reset()
		d := &Driver{cgroups: c.cgroups}
		d.o.Disks = func(context.Context, string) ([]storage.Device, error) { return c.found, nil }
		r := record{Spec: driver.Spec{UUID: "11111111-2222-3333-4444-555555555555"}}
		r.Spec.Limits.Disk = c.limits
		got, err := d.throttled(t.Context(), r)
		require.NoError(t, err, name)
		require.Equal(t, c.want, got, name)
		if c.warning == "" {
			require.Empty(t, log.String(), name)
			continue
		}
		require.Equal(t, 1, strings.Count(log.String(), "\n"), name)
		require.Contains(t, log.String(), "level=warning", name)
		require.Contains(t, log.String(), `msg="`+c.warning+`"`, name)
		require.Contains(t, log.String(), "instance="+r.Spec.UUID, name)
	}

	log.Reset()
	d := &Driver{cgroups: groups(layoutV2, "io")}
	gone := errors.New("gone")
	d.o.Disks = func(context.Context, string) ([]storage.Device, error) { return nil, gone }
	r := record{}
	r.Spec.Limits.Disk = limits
	_, err := d.throttled(t.Context(), r)
	require.ErrorIs(t, err, gone, "a guest that cannot be throttled for an error is not started")
	require.Empty(t, log.String())
}
