package imagesync

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestResume(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := plainTar(t, 100_000)
	src := &bytesSource{data: data, cut: 40_000}
	r := request("image", data)
	r.Source = src
	_, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, []int64{0, 40_000, 80_000}, src.offsets)
}

// TestStall: a connection that says nothing more is given up and made anew.
func TestStall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // a busy machine says nothing for a while, too
		s := openStore(t, func(o *Options) { o.StallTimeout = time.Minute })
		data := plainTar(t, 100_000)
		src := &stalling{bytesSource: bytesSource{data: data, cut: 40_000}}
		r := request("image", data)
		r.Source = src
		_, err := s.Sync(t.Context(), r)
		require.NoError(t, err)
		require.Equal(t, []int64{0, 40_000, 80_000}, src.offsets)
	})
}

// stalling says nothing more where bytesSource has an error.
type stalling struct{ bytesSource }

func (s *stalling) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	body, err := s.bytesSource.Open(ctx, offset)
	return &stallReader{ctx: ctx, ReadCloser: body}, err
}

type stallReader struct {
	io.ReadCloser
	ctx context.Context
}

func (s *stallReader) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		<-s.ctx.Done()
		return 0, s.ctx.Err()
	}
	return n, err
}

func TestRetriesEnd(t *testing.T) {
	t.Parallel()
	data := plainTar(t, 1000)
	down := errors.New("connection refused")
	for name, tc := range map[string]struct {
		err   error
		opens int
	}{
		"transient": {down, 3},
		"permanent": {errDenied, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t, func(o *Options) { o.Retries = 3 })
			src := &bytesSource{data: data, fail: func(int) error { return tc.err }}
			r := request("image", data)
			r.Source = src
			_, err := s.Sync(t.Context(), r)
			require.ErrorIs(t, err, tc.err)
			require.Equal(t, tc.opens, src.opens())
			requireClean(t, s)
		})
	}
}

func TestHashMismatch(t *testing.T) {
	t.Parallel()
	data := gzipped(t, plainTar(t, 1000))
	flip := func(times int) func(int, []byte) {
		return func(open int, p []byte) {
			if open <= times {
				p[len(p)/2] ^= 1
			}
		}
	}
	t.Run("once", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		r := request("image", data)
		r.Source = &bytesSource{data: data, damage: flip(1)}
		_, err := s.Sync(t.Context(), r)
		require.NoError(t, err)
	})
	t.Run("always", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		r := request("image", data)
		r.Source = &bytesSource{data: data, damage: flip(99)}
		_, err := s.Sync(t.Context(), r)
		require.ErrorIs(t, err, ErrHashMismatch)
		requireClean(t, s)
	})
	t.Run("md5", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		r := request("image", data)
		r.HashAlgo, r.HashValue, r.Checksum = "", "", strings.Repeat("0", 32)
		_, err := s.Sync(t.Context(), r)
		require.ErrorIs(t, err, ErrHashMismatch)
	})
	t.Run("longer", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		r := request("image", data)
		r.Size -= 10
		_, err := s.Sync(t.Context(), r)
		require.ErrorIs(t, err, ErrHashMismatch)
	})
	t.Run("shorter", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		r := request("image", data)
		r.Size += 10
		_, err := s.Sync(t.Context(), r)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		requireClean(t, s)
	})
	t.Run("unknown", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		r := request("image", data)
		r.Size, r.HashAlgo, r.HashValue = -1, "", ""
		_, err := s.Sync(t.Context(), r)
		require.NoError(t, err)
	})
}
