package plugging

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWaiters(t *testing.T) {
	t.Parallel()
	var w Waiters
	require.False(t, w.Deliver("i", "e", "p", "completed"), "an event that nobody expects is not remembered")

	before := w.Expect("i", "e", "p")
	require.False(t, w.Deliver("i", "e", "other", "completed"))
	require.False(t, w.Deliver("other", "e", "p", "completed"))
	require.True(t, w.Deliver("i", "e", "p", "failed"))
	require.False(t, w.Deliver("i", "e", "p", "completed"), "it is expected once")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 1000 {
		e := w.Expect("i", "e", "q")
		require.True(t, w.Deliver("i", "e", "q", "completed"))
		status, err := e.Wait(ended)
		require.NoError(t, err, "an event that came in time counts, however late the waiter looks")
		require.Equal(t, "completed", status)
	}
	status, err := before.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, "failed", status)

	_, err = w.Expect("i", "e", "p").Wait(ended)
	require.ErrorIs(t, err, context.Canceled)
	w.Expect("i", "e", "p")
	w.Expect("i", "e", "q")
	kept := w.Expect("j", "e", "p")
	w.Drop("i")
	require.Len(t, w.waiting, 1)
	kept.Cancel()
	kept.Cancel()
	require.Empty(t, w.waiting)

	first := w.Expect("i", "e", "p")
	second := w.Expect("i", "e", "p")
	first.Cancel()
	require.True(t, w.Deliver("i", "e", "p", "completed"), "cancelling one does not take the other's place")
	_, err = second.Wait(ended)
	require.NoError(t, err)
}
