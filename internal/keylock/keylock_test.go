package keylock_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/compute-agent/compute-agent/internal/keylock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestExcludesPerKey(t *testing.T) {
	t.Parallel()
	var locks keylock.Locks
	counts := map[string]*int{"a": new(int), "b": new(int), "c": new(int)}
	var wg sync.WaitGroup
	for key, n := range counts {
		for range 100 {
			wg.Go(func() {
				unlock, err := locks.Lock(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				defer unlock()
				*n++ // the race detector watches
			})
		}
	}
	wg.Wait()
	for key, n := range counts {
		require.Equal(t, 100, *n, key)
	}
}

func TestOtherKeysDoNotWait(t *testing.T) {
	t.Parallel()
	var locks keylock.Locks
	unlock, err := locks.Lock(t.Context(), "a")
	require.NoError(t, err)
	defer unlock()
	other, err := locks.Lock(t.Context(), "b")
	require.NoError(t, err)
	other()
}

func TestFirstComeFirstServed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var locks keylock.Locks
		unlock, err := locks.Lock(t.Context(), "a")
		require.NoError(t, err)
		var got []int
		for i := range 5 {
			go func() {
				unlock, err := locks.Lock(t.Context(), "a")
				if err != nil {
					t.Error(err)
					return
				}
				defer unlock()
				got = append(got, i)
			}()
			synctest.Wait()
		}
		unlock()
		unlock() // counts once: must not let two in
		synctest.Wait()
		if diff := cmp.Diff([]int{0, 1, 2, 3, 4}, got); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

func TestWaiterLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var locks keylock.Locks
		unlock, err := locks.Lock(t.Context(), "a")
		require.NoError(t, err)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		got := make(chan string, 1) // one answer
		go func() {
			_, err := locks.Lock(ctx, "a")
			got <- err.Error()
		}()
		synctest.Wait()
		last := make(chan struct{})
		go func() {
			unlock, err := locks.Lock(t.Context(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			unlock()
			close(last)
		}()
		require.Equal(t, "lock a: context deadline exceeded", <-got)
		unlock()
		<-last

		_, err = locks.Lock(ctx, "b")
		require.ErrorIs(t, err, context.DeadlineExceeded, "an ended context gets nothing, though the key is free")
	})
}

// TestTurnAndCancelTogether: a waiter whose context ends in the moment its turn
// comes must pass the lock on, whichever it notices.
func TestTurnAndCancelTogether(t *testing.T) {
	t.Parallel()
	var locks keylock.Locks
	for range 500 {
		unlock, err := locks.Lock(t.Context(), "a")
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if u, err := locks.Lock(ctx, "a"); err == nil {
				u()
			}
		})
		wg.Go(cancel)
		wg.Go(unlock)
		wg.Wait()
		u, err := locks.Lock(t.Context(), "a")
		require.NoError(t, err)
		u()
	}
}
