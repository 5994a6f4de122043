package compute

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWaiters(t *testing.T) {
	t.Parallel()
	var w eventWaiters
	require.False(t, w.deliver("i", "e", "p", "completed"), "an event that nobody expects is not remembered")

	before := w.expect("i", "e", "p")
	require.False(t, w.deliver("i", "e", "other", "completed"))
	require.False(t, w.deliver("other", "e", "p", "completed"))
	require.True(t, w.deliver("i", "e", "p", "failed"))
	require.False(t, w.deliver("i", "e", "p", "completed"), "it is expected once")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 1000 {
		e := w.expect("i", "e", "q")
		require.True(t, w.deliver("i", "e", "q", "completed"))
		status, err := e.wait(ended)
		require.NoError(t, err, "an event that came in time counts, however late the waiter looks")
		require.Equal(t, "completed", status)
	}
	status, err := before.wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, "failed", status)

	_, err = w.expect("i", "e", "p").wait(ended)
	require.ErrorIs(t, err, context.Canceled)
	w.expect("i", "e", "p")
	w.expect("i", "e", "q")
	kept := w.expect("j", "e", "p")
	w.drop("i")
	require.Len(t, w.waiting, 1)
	kept.cancel()
	kept.cancel()
	require.Empty(t, w.waiting)

	first := w.expect("i", "e", "p")
	second := w.expect("i", "e", "p")
	first.cancel()
	require.True(t, w.deliver("i", "e", "p", "completed"), "cancelling one does not take the other's place")
	_, err = second.wait(ended)
	require.NoError(t, err)
}
