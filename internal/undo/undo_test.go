package undo_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/undo"
)

type ctxKey struct{}

func TestRewindRunsAllStepsInReverse(t *testing.T) {
	t.Parallel()
	var s undo.Stack
	var got []string
	errDisk, errPort := errors.New("disk busy"), errors.New("port gone")
	push := func(name string, err error) {
		s.Push(name, func(context.Context) error {
			got = append(got, name)
			return err
		})
	}
	push("remove disk", errDisk)
	push("release range", nil)
	push("unplug port", errPort)

	err := s.Rewind(t.Context())
	require.ErrorIs(t, err, errDisk)
	require.ErrorIs(t, err, errPort)
	require.Equal(t, "unplug port: port gone\nremove disk: disk busy", err.Error())
	if diff := cmp.Diff([]string{"unplug port", "release range", "remove disk"}, got); diff != "" {
		t.Errorf("order of steps (-want +got):\n%s", diff)
	}

	require.NoError(t, s.Rewind(t.Context()), "a second rewind finds nothing")
	require.Len(t, got, 3)
}

func TestReleaseForgets(t *testing.T) {
	t.Parallel()
	var s undo.Stack
	s.Push("fail", func(context.Context) error { return errors.New("must not run") })
	s.Release()
	require.NoError(t, s.Rewind(t.Context()))

	ran := false
	s.Push("later", func(context.Context) error { ran = true; return nil })
	require.NoError(t, s.Rewind(t.Context()))
	require.True(t, ran, "a released stack can be filled again")
}

func TestRewindOutlivesCancelledContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), ctxKey{}, "req-1"))
		cancel()
		start := time.Now()
		var s undo.Stack
		s.Push("wait for the end", func(ctx context.Context) error {
			require.Equal(t, "req-1", ctx.Value(ctxKey{}))
			require.NoError(t, ctx.Err())
			<-ctx.Done()
			return ctx.Err()
		})
		require.ErrorIs(t, s.Rewind(ctx), context.DeadlineExceeded)
		require.Equal(t, undo.Timeout, time.Since(start))
	})
}
