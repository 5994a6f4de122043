package blockcache

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCache(t *testing.T) {
	t.Parallel()
	c := New(16, 1)
	fills := 0
	get := func(key uint64) byte {
		b, err := c.Get(key, func(b []byte) error {
			fills++
			require.Len(t, b, 16)
			b[0] = byte(key)
			return nil
		})
		require.NoError(t, err)
		return b[0]
	}
	for key := range uint64(fewest) {
		require.Equal(t, byte(key), get(key))
	}
	require.Equal(t, byte(0), get(0))
	require.Equal(t, fewest, fills, "the second time it is there")
	get(100)
	require.Equal(t, byte(0), get(0), "the one used last stays")
	require.Equal(t, fewest+1, fills)
	get(1)
	require.Equal(t, fewest+2, fills, "the one used first made way")
	failure := errors.New("damaged")
	_, err := c.Get(7777, func([]byte) error { return failure })
	require.ErrorIs(t, err, failure)
	_, err = c.Get(7777, func([]byte) error { return failure })
	require.ErrorIs(t, err, failure, "a block that failed is not kept")
	require.LessOrEqual(t, c.order.Len(), fewest)
}
