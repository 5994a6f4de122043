package glance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/compute-agent/compute-agent/internal/openstack"
)

// octetStream is the type of image data in both directions.
const octetStream = "application/octet-stream"

// Open starts the download of an image's data at an offset and returns the
// stream and the number of bytes in it, -1 if the service does not say. The
// caller closes the stream and verifies the content's hash. A stream that fails
// midway is resumed by another Open at the offset reached; a service that
// cannot resume sends all of it again, of which the beginning is skipped here.
func (c *Client) Open(ctx context.Context, id string, offset int64) (io.ReadCloser, int64, error) {
	var resp *http.Response
	header := map[string]string{"Accept": octetStream}
	if offset > 0 {
		header["Range"] = "bytes=" + strconv.FormatInt(offset, 10) + "-"
	}
	err := c.attempt(ctx, func(endpoint string) (err error) {
		resp, err = c.options.Service.Stream(ctx, openstack.Request{ //nolint:bodyclose // the caller reads and closes it
			Method: http.MethodGet, Path: imagePath(id, "file"), Header: header, User: true, Endpoint: endpoint,
		})
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("download image %s: %w", id, err)
	}
	if resp.StatusCode == http.StatusNoContent {
		_ = resp.Body.Close() // nothing was to be read
		return nil, 0, fmt.Errorf("download image %s: %w", id, ErrNoData)
	}
	size := resp.ContentLength
	if offset > 0 {
		skipped, err := c.resume(resp, offset)
		if err != nil {
			return nil, 0, errors.Join(fmt.Errorf("download image %s from %d: %w", id, offset, err), resp.Body.Close())
		}
		if size >= 0 {
			size -= skipped
		}
	}
	return resp.Body, size, nil
}

// resume brings the stream to the offset and returns how much it skipped.
func (c *Client) resume(resp *http.Response, offset int64) (int64, error) {
	if resp.StatusCode == http.StatusPartialContent {
		// bytes 1000-1999/2000
		got, _, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "-")
		if start, err := strconv.ParseInt(got, 10, 64); err != nil || start != offset {
			return 0, fmt.Errorf("service sent another range: %q", resp.Header.Get("Content-Range"))
		}
		return 0, nil
	}
	return io.CopyN(io.Discard, resp.Body, offset)
}

// Upload sends the data of an image that has none yet. It is repeated only if
// nothing of the data has been read.
func (c *Client) Upload(ctx context.Context, id string, data io.Reader) error {
	err := c.attempt(ctx, func(endpoint string) error {
		counted := &counter{Reader: data}
		resp, err := c.options.Service.Stream(ctx, openstack.Request{
			Method: http.MethodPut, Path: imagePath(id, "file"), RawBody: counted, User: true, Endpoint: endpoint,
			Header: map[string]string{"Content-Type": octetStream},
		})
		if err == nil {
			return resp.Body.Close()
		}
		if n := counted.n.Load(); n > 0 {
			return &consumedError{cause: err, n: n}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("upload image %s: %w", id, err)
	}
	return nil
}

// consumedError is a failure that cannot be cured by another attempt, because
// the data is gone.
type consumedError struct {
	cause error
	n     int64
}

func (e *consumedError) Error() string {
	return fmt.Sprintf("after %d bytes: %s", e.n, e.cause.Error())
}

func (e *consumedError) Unwrap() error { return e.cause }

// counter counts what is read. The HTTP transport reads in a goroutine that may
// outlast the request.
type counter struct {
	io.Reader

	n atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// Update sets fields of an image: base fields by their API name ("name",
// "disk_format", "container_format") and properties. Others stay as they are. A
// nil value is sent as null.
func (c *Client) Update(ctx context.Context, id string, fields map[string]any) (Image, error) {
	type change struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	changes := make([]change, 0, len(fields))
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		// In this media type "add" also replaces (glance/api/v2/images.py:_do_add).
		changes = append(changes, change{Op: "add", Path: "/" + escape.Replace(name), Value: fields[name]})
	}
	var image Image
	err := c.attempt(ctx, func(endpoint string) error {
		return c.options.Service.Do(ctx, openstack.Request{
			Method: http.MethodPatch, Path: imagePath(id, ""), Body: changes, Into: &image, User: true, Endpoint: endpoint,
			Header: map[string]string{"Content-Type": "application/openstack-images-v2.1-json-patch"},
		})
	})
	if err != nil {
		return Image{}, fmt.Errorf("update image %s: %w", id, err)
	}
	return image, nil
}
