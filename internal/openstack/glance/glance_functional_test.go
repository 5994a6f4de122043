//go:build functional

package glance

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/openstack/ostest"
)

// unsaid is the length of a body that Glance sends behind a server that takes the length away, as Debian 13 sets up uwsgi.
const unsaid = -1

// TestDownload reads the image "busybox-rootfs" in one go and in two parts.
func TestDownload(t *testing.T) {
	cloud := ostest.Need(t)
	service := cloud.Service("glance", "image", "v2")
	c := New(Options{Service: service, NumRetries: 3})
	ctx, _ := cloud.Context(t, "demo", "demo", "member")
	var found struct{ Images []Image }
	require.NoError(t, service.Do(ctx, openstack.Request{
		Method: http.MethodGet, Path: "/images", Query: url.Values{"name": {"busybox-rootfs"}}, Into: &found, User: true,
	}))
	require.Len(t, found.Images, 1, "the control plane needs an image busybox-rootfs")

	started := time.Now()
	image, err := c.Show(ctx, found.Images[0].ID)
	require.NoError(t, err)
	t.Logf("show: %v", time.Since(started).Round(time.Millisecond))
	require.Equal(t, "sha512", image.OSHashAlgo)

	started = time.Now()
	body, size, err := c.Open(ctx, image.ID, 0)
	require.NoError(t, err)
	require.Contains(t, []int64{*image.Size, unsaid}, size)
	first := time.Since(started)
	hash := sha512.New()
	n, err := io.Copy(hash, body)
	require.NoError(t, err)
	require.NoError(t, body.Close())
	t.Logf("download %d bytes: first byte after %v, all after %v", n, first.Round(time.Millisecond), time.Since(started).Round(time.Millisecond))
	require.Equal(t, image.OSHashValue, hex.EncodeToString(hash.Sum(nil)))

	half := *image.Size / 2
	hash.Reset()
	body, _, err = c.Open(ctx, image.ID, 0)
	require.NoError(t, err)
	_, err = io.CopyN(hash, body, half)
	require.NoError(t, err)
	require.NoError(t, body.Close())
	body, size, err = c.Open(ctx, image.ID, half)
	require.NoError(t, err)
	require.Contains(t, []int64{*image.Size - half, unsaid}, size)
	_, err = io.Copy(hash, body)
	require.NoError(t, err)
	require.NoError(t, body.Close())
	require.Equal(t, image.OSHashValue, hex.EncodeToString(hash.Sum(nil)), "resumed")

	_, _, err = c.Open(ctx, "00000000-0000-0000-0000-000000000000", 0)
	require.ErrorIs(t, err, ErrNotFound)
}

// TestUpload makes an image of its own, as a snapshot does.
func TestUpload(t *testing.T) {
	cloud := ostest.Need(t)
	service := cloud.Service("glance", "image", "v2")
	c := New(Options{Service: service})
	ctx, _ := cloud.Context(t, "demo", "demo", "member")
	var image Image
	require.NoError(t, service.Do(ctx, openstack.Request{
		Method: http.MethodPost, Path: "/images", Into: &image, User: true,
		Body: map[string]any{"name": "functional", "base_image_ref": "x"},
	}))
	t.Cleanup(func() { _ = c.Delete(context.WithoutCancel(ctx), image.ID) })
	changed, err := c.Update(ctx, image.ID, map[string]any{
		"name": "functional-snapshot", "disk_format": "raw", "container_format": "bare", "image_state": "available", "base_image_ref": "y",
	})
	require.NoError(t, err)
	require.Equal(t, "functional-snapshot", changed.Name)
	require.Equal(t, map[string]any{"image_state": "available", "base_image_ref": "y"}, withoutOwner(changed.Properties))

	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	// A reader that is not a bytes.Reader, so the length is unknown to HTTP.
	require.NoError(t, c.Upload(ctx, image.ID, io.MultiReader(bytes.NewReader(content))))
	got, err := c.Show(ctx, image.ID)
	require.NoError(t, err)
	require.Equal(t, "active", got.Status)
	sum := sha512.Sum512(content)
	require.Equal(t, hex.EncodeToString(sum[:]), got.OSHashValue)
	require.ErrorIs(t, c.Upload(ctx, image.ID, strings.NewReader("more")), ErrConflict)
	require.NoError(t, c.Delete(ctx, image.ID))
	require.ErrorIs(t, c.Delete(ctx, image.ID), ErrNotFound)
}

// withoutOwner drops what Glance itself adds to an image's properties.
func withoutOwner(properties map[string]any) map[string]any {
	for name := range properties {
		if strings.HasPrefix(name, "owner_") || name == "os_glance_importing_to_stores" || name == "os_glance_failed_import" || name == "stores" {
			delete(properties, name)
		}
	}
	return properties
}
