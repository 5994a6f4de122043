package mount

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHasAlias(t *testing.T) {
	t.Parallel()
	aliases := []byte("# Aliases extracted from modules themselves.\nalias fs-overlay overlay\nalias fs-xfs xfs\n")
	require.True(t, hasAlias(aliases, "overlay"))
	require.True(t, hasAlias(aliases, "xfs"))
	require.False(t, hasAlias(aliases, "over"))
	require.False(t, hasAlias(aliases, "btrfs"))
	require.False(t, hasAlias(nil, "btrfs"))
}
