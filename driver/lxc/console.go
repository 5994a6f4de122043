package lxc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// ConsoleLog implements driver.Driver. The monitor writes the file as output comes and
// renames it to .1 when it is full, so the two together hold the latest output.
func (d *Driver) ConsoleLog(_ context.Context, uuid string, limit int) ([]byte, error) {
	rec, err := d.load(uuid)
	if err != nil {
		return nil, err
	}
	file := d.consoleFile(rec.Spec.Name)
	log, err := tail(file, limit)
	if err != nil {
		return nil, fmt.Errorf("read console of %s: %w", uuid, err)
	}
	if len(log) >= limit {
		return log, nil
	}
	older, err := tail(file+".1", limit-len(log))
	if err != nil {
		return nil, fmt.Errorf("read console of %s: %w", uuid, err)
	}
	return append(older, log...), nil
}

// tail returns at most the last n bytes of a file; a missing file is empty.
func tail(path string, n int) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	skip := max(st.Size()-int64(max(n, 0)), 0)
	return io.ReadAll(io.NewSectionReader(f, skip, st.Size()-skip))
}
