package flavor_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/flavor"
)

func TestPool(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		specs   map[string]string
		image   string
		want    string
		byImage bool
	}{
		{"nobody says", nil, "", "", false},
		{"the flavor", map[string]string{"lxc:pool": " fast "}, "", "fast", false},
		{"the image", nil, "slow", "slow", true},
		{"the flavor wins", map[string]string{"lxc:pool": "fast"}, "slow", "fast", false},
		{"the flavor wants none", map[string]string{"lxc:pool": "default"}, "slow", "", false},
		{"the image wants none", nil, "default", "", false},
	} {
		name, byImage := flavor.Pool(c.specs, c.image)
		require.Equal(t, c.want, name, c.name)
		require.Equal(t, c.byImage, byImage, c.name)
	}
}

func TestPoolNames(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"fast": true, "ssd_2": true, "a": true, "default": true, "": false, "Fast": false, "2fast": false, "fa-st": false, "../etc": false,
		"a2345678901234567890123456789012": true, "a23456789012345678901234567890123": false,
	} {
		_, warnings, err := flavor.FromSpecs(small(map[string]string{"lxc:pool": name}), policy)
		require.Empty(t, warnings, name)
		var invalid *flavor.InvalidError
		if want {
			require.NoError(t, err, name)
		} else {
			require.ErrorAs(t, err, &invalid, name)
		}
	}
}
