package imagesync

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// waiting counts the callers that wait for imports.
func waiting(s *Store) int {
	n := 0
	for _, transfer := range s.Transfers() {
		n += transfer.Waiting
	}
	return n
}

// TestOneDownload: callers of one id, and of two ids with the same bytes, share it.
func TestOneDownload(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := gzipped(t, plainTar(t, 1000))
	src := &bytesSource{data: data, block: make(chan struct{})}
	var group sync.WaitGroup
	for i := range 10 {
		group.Go(func() {
			r := request(fmt.Sprintf("image-%d", i%2), data)
			r.Source = src
			img, err := s.Sync(t.Context(), r)
			if err != nil || img.ID != r.ID {
				t.Errorf("sync %s: %v, %v", r.ID, img.ID, err)
			}
		})
	}
	require.Eventually(t, func() bool { return src.opens() == 1 && waiting(s) == 10 }, patience, time.Millisecond)
	close(src.block)
	group.Wait()
	require.Equal(t, 1, src.opens())
	images, err := s.List(t.Context())
	require.NoError(t, err)
	require.Len(t, images, 2)
	require.Equal(t, images[0].Path, images[1].Path)
	require.Len(t, readDir(t, s.path("images")), 1)

	// A third id with only a weak checksum is fetched, and stored once all the same.
	weak := request("image-3", data)
	sum := md5.Sum(data)
	weak.HashAlgo, weak.HashValue, weak.Checksum, weak.Source = "", "", hex.EncodeToString(sum[:]), src
	_, err = s.Sync(t.Context(), weak)
	require.NoError(t, err)
	require.Equal(t, 2, src.opens())
	require.Len(t, readDir(t, s.path("images")), 1)
}

// TestCallersLeave: a caller's end is its own; the last one's end is the download's.
func TestCallersLeave(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := plainTar(t, 1000)
	src := &bytesSource{data: data, block: make(chan struct{})}
	r := request("image", data)
	r.Source = src
	start := func() (context.CancelFunc, chan error) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := s.Sync(ctx, r)
			done <- err
		}()
		return cancel, done
	}
	leaveOne, one := start()
	leaveTwo, two := start()
	require.Eventually(t, func() bool { return waiting(s) == 2 && src.opens() == 1 }, patience, time.Millisecond)
	leaveOne()
	require.ErrorIs(t, <-one, context.Canceled)
	require.Equal(t, 1, waiting(s), "the download goes on for the other")
	leaveTwo()
	require.ErrorIs(t, <-two, context.Canceled)
	s.work.Wait()
	requireClean(t, s)
	require.Equal(t, 1, src.opens())

	close(src.block)
	_, err := s.Sync(t.Context(), r)
	require.NoError(t, err, "a later caller starts anew")
}

// TestLeaderFails: the first caller's token is no concern of the second.
func TestLeaderFails(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := plainTar(t, 1000)
	bad, good := request("image", data), request("image", data)
	denied := &denied{release: make(chan struct{})}
	bad.Source = denied
	first := make(chan error, 1)
	go func() {
		_, err := s.Sync(t.Context(), bad)
		first <- err
	}()
	require.Eventually(t, denied.opened.Load, patience, time.Millisecond)
	second := make(chan error, 1)
	go func() {
		_, err := s.Sync(t.Context(), good)
		second <- err
	}()
	require.Eventually(t, func() bool { return waiting(s) == 2 }, patience, time.Millisecond)
	close(denied.release)
	require.ErrorIs(t, <-first, errDenied)
	require.NoError(t, <-second)
}

type denied struct {
	opened  atomic.Bool
	release chan struct{}
}

func (d *denied) Open(context.Context, int64) (io.ReadCloser, error) {
	d.opened.Store(true)
	<-d.release
	return nil, errDenied
}

func TestNoSpace(t *testing.T) {
	t.Parallel()
	s := openStore(t, func(o *Options) { o.ReserveBytes = 1 << 60 })
	_, err := s.Sync(t.Context(), request("image", plainTar(t, 10)))
	require.ErrorIs(t, err, ErrNoSpace)
	requireClean(t, s)
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	s := openStore(t, func(o *Options) { o.Timeout = 20 * time.Millisecond })
	r := request("image", plainTar(t, 10))
	r.Source = &bytesSource{data: []byte("x"), block: make(chan struct{})}
	_, err := s.Sync(t.Context(), r)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "20ms")
	requireClean(t, s)
}

func TestBadNames(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	for _, id := range []string{"", "..", "a/b", "a\x00", ".hidden"} {
		_, err := s.Sync(t.Context(), request(id, plainTar(t, 10)))
		require.Error(t, err, id)
		require.Error(t, s.Release(id, "i"))
	}
}
