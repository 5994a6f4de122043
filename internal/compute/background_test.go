package compute

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBackground(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b background
		require.NoError(t, b.wait(t.Context()), "nothing runs")
		start := time.Now()
		b.run(func() { time.Sleep(time.Second) })
		b.run(func() { time.Sleep(3 * time.Second) })
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		require.ErrorIs(t, b.wait(ctx), context.DeadlineExceeded)
		require.NoError(t, b.wait(t.Context()))
		require.Equal(t, 3*time.Second, time.Since(start))
		b.run(func() { time.Sleep(time.Second) })
		require.NoError(t, b.wait(t.Context()), "it may be used again")
		require.Equal(t, 4*time.Second, time.Since(start))
	})
}
