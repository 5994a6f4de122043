package imagesync

import (
	"bytes"
	"context"
	"io"
	"os"
	"sync/atomic"
)

// bytesSource serves bytes, as many of them as each connection is allowed.
type bytesSource struct {
	data  []byte
	opens atomic.Int32
}

func (s *bytesSource) Open(_ context.Context, offset int64) (io.ReadCloser, error) {
	s.opens.Add(1)
	return io.NopCloser(bytes.NewReader(s.data[min(offset, int64(len(s.data))):])), nil
}

// fileSource serves a file.
type fileSource string

func (f fileSource) Open(_ context.Context, offset int64) (io.ReadCloser, error) {
	file, err := os.Open(string(f))
	if err != nil {
		return nil, err
	}
	_, err = file.Seek(offset, io.SeekStart)
	return file, err
}
