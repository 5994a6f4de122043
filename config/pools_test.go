package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPools(t *testing.T) {
	t.Parallel()
	c, r := load(t, "[lxc]\nextra_pools = fast:overlay:/srv/nvme , slow_2:btrfs:/srv/disks/:200\nimage_pools = slow_2\n")
	require.Empty(t, r.Findings)
	require.Equal(t, []Pool{{Name: "fast", Backend: "overlay", Dir: "/srv/nvme"}, {Name: "slow_2", Backend: "btrfs", Dir: "/srv/disks", ReservedGB: 200}}, c.LXC.ExtraPools)
	require.Equal(t, []string{"slow_2"}, c.LXC.ImagePools)
	summary, err := c.Summarize(nil)
	require.NoError(t, err)
	require.Equal(t, "overlay, pool fast: overlay in /srv/nvme, pool slow_2: btrfs in /srv/disks", summary.Storage)

	c, _ = load(t)
	require.Empty(t, c.LXC.ExtraPools)
}
