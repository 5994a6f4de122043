package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/imagesync/pack"
	"github.com/compute-agent/compute-agent/internal/control"
)

// fixedImages is a store whose list never changes.
type fixedImages struct {
	control.Images

	listing control.Listing
}

func (f *fixedImages) List(context.Context) (control.Listing, error) { return f.listing, nil }

func TestFindImage(t *testing.T) {
	t.Parallel()
	images := &fixedImages{listing: control.Listing{Images: []control.Image{
		{ID: "36adbebc-e44e-480c-a879-237d84122861", Fingerprint: "aaaa1111"},
		{ID: "36adffff-e44e-480c-a879-237d84122861", Fingerprint: "bbbb2222"},
		{ID: "local-debian", Fingerprint: "aaaa1111"},
		{ID: "local-debian-12", Fingerprint: "cccc3333"},
	}}}
	for word, want := range map[string]string{
		"36adbebc-e44e-480c-a879-237d84122861": "36adbebc-e44e-480c-a879-237d84122861", "36adb": "36adbebc-e44e-480c-a879-237d84122861",
		"local-debian": "local-debian", "debian": "local-debian", "debian-": "local-debian-12", "cccc": "local-debian-12",
		"36ad": "names 2 images", "aaaa": "names 2 images", "ccc": "no image", "nothing": "no image", "": "no image",
	} {
		got, err := findImage(t.Context(), images, word)
		if strings.Contains(want, " ") {
			require.ErrorContains(t, err, want, word)
			continue
		}
		require.NoError(t, err, word)
		require.Equal(t, want, got.ID, word)
	}
}

func TestLocalName(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"/a/debian-12.tar.xz": "debian-12", "alpine.tgz": "alpine", "x.y z.tar": "x-y-z", "disk.qcow2": "disk", "plain": "plain",
		"../..": "", "root.tar.gz.gz": "root-tar-gz", "größe.squashfs": "gr-e", strings.Repeat("n", 200): strings.Repeat("n", 100),
	} {
		require.Equal(t, want, localName(file), file)
	}
}

func TestExportTarget(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args              []string
		compression, file string
		how               pack.Compression
		fails             string
	}{
		{nil, "", "id.tar.zst", pack.Zstd, ""},
		{nil, "xz", "id.tar.xz", pack.XZ, ""},
		{[]string{"a.tar.gz"}, "", "a.tar.gz", pack.Gzip, ""},
		{[]string{"a.tar"}, "none", "a.tar", pack.None, ""},
		{[]string{"a.img"}, "", "a.img", pack.Zstd, ""},
		{[]string{"-"}, "gz", "-", pack.Gzip, ""},
		{[]string{"a.tar.gz"}, "xz", "", 0, "different things"},
		{nil, "lzma", "", 0, "not one of"},
	} {
		file, how, err := exportTarget("id", c.args, c.compression)
		if c.fails != "" {
			require.ErrorContains(t, err, c.fails)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, c.file, file)
		require.Equal(t, c.how, how)
	}
}

func TestImageTables(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	listing := control.Listing{
		Images: []control.Image{
			{ID: "36adbebc-e44e-480c-a879-237d84122861", Fingerprint: "0123456789abcdef", Architecture: "x86_64", Size: 53602820, DiskSize: 214605824, Imported: now.Add(-72 * time.Hour), LastUsed: now.Add(-90 * time.Minute), Instances: []string{"a", "b"}},
			{ID: "local-\x1b[31mred", Architecture: "amd64", Size: 10, DiskSize: 4096, Imported: now, LastUsed: now.Add(-5 * time.Minute), Keep: true},
		},
		Transfers: []control.Transfer{{ID: "b7", Received: 5 << 20, Size: 20 << 20, Started: now.Add(-10 * time.Second)}, {ID: "c8", Received: 1, Started: now}},
		Contents:  2, DiskSize: 214609920, Free: 5 << 40,
	}
	var out bytes.Buffer
	human := &outputFlags{format: "table"}
	require.NoError(t, human.write(&out, listing, func(tab *table) { tab.listing(listing, now) }))
	want := `IMAGE                                  CONTENT        ARCH     DOWNLOAD   ON DISK     IMPORTED     LAST USE    USED BY
36adbebc-e44e-480c-a879-237d84122861   0123456789ab   x86_64   51.1 MiB   204.7 MiB   3 days ago   1 h ago     2 servers
local-?[31mred                                        amd64    10 B       4.0 KiB     just now     5 min ago   kept
b7: importing, 5.0 MiB of 20.0 MiB (25 %), 512.0 KiB/s
c8: importing, 1 B
2 images in 2 contents, 204.7 MiB on disk, 5.0 TiB free
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	for _, format := range []string{"json", "yaml"} {
		out.Reset()
		f := &outputFlags{format: format}
		require.NoError(t, f.write(&out, listing, nil))
		require.Contains(t, out.String(), "last_used_at")
		require.NotContains(t, out.String(), "\x1b")
	}
}

// TestImageTable is all that a table can say of an image, and what it says of one that has little to tell.
func TestImageTable(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		image control.Image
		want  string
	}{
		{control.Image{
			ID: "36adbebc-e44e-480c-a879-237d84122861", Fingerprint: "0123456789abcdef", Architecture: "x86_64", Size: 53602820, UnpackedSize: 200 << 20,
			DiskSize: 214605824, Entries: 8123, Hashes: map[string]string{"sha512": "cdef", "md5": "89ab", "sha256": "0123456789abcdef"},
			Imported: now.Add(-72 * time.Hour), LastUsed: now.Add(-90 * time.Minute), Instances: []string{"server-a", "server-b"}, Keep: true,
			SameContent: []string{"local-debian", "77adbebc-e44e-480c-a879-237d84122861"}, Path: "/images/1/rootfs",
			Metadata: imagesync.Metadata{
				Architecture: "amd64", CreationDate: now.Add(-30 * 24 * time.Hour).Unix(), ExpiryDate: now.Add(24 * time.Hour).Unix(),
				Properties: map[string]string{"release": "bookworm", "os": "Debian", "description": "red: \x1b[31m"},
				Templates:  map[string]imagesync.Template{"/etc/hosts": {Template: "hosts.tpl"}, "/etc/hostname": {Template: "hostname.tpl"}},
			},
		}, `id:                       36adbebc-e44e-480c-a879-237d84122861
content:                  0123456789abcdef
md5:                      89ab
sha512:                   cdef
stored once with:         local-debian, 77adbebc-e44e-480c-a879-237d84122861
architecture:             x86_64
download:                 51.1 MiB
on disk:                  204.7 MiB, 8123 files, 200.0 MiB of content
imported:                 2026-11-18 12:00:00 UTC (3 days ago)
last use:                 2026-11-21 10:30:00 UTC (1 h ago)
kept:                     yes, only image rm removes it
used by:                  server-a, server-b
root file system:         /images/1/rootfs
created:                  2026-10-22 12:00:00 UTC (30 days ago)
expires:                  2026-11-22 12:00:00 UTC
property description:     red: ?[31m
property os:              Debian
property release:         bookworm
template /etc/hostname:   hostname.tpl
template /etc/hosts:      hosts.tpl
`},
		{control.Image{ID: "local-plain", Fingerprint: "ff", Architecture: "i686", Size: 10, DiskSize: 4096, Entries: 1, Imported: now, LastUsed: now, Path: "/images/2/rootfs"}, `id:                 local-plain
content:            ff
stored once with:   no other id
architecture:       i686
download:           10 B
on disk:            4.0 KiB, 1 file, 0 B of content
imported:           2026-11-21 12:00:00 UTC (just now)
last use:           2026-11-21 12:00:00 UTC (just now)
used by:            no server
root file system:   /images/2/rootfs
`},
	} {
		var out bytes.Buffer
		human := &outputFlags{format: "table"}
		require.NoError(t, human.write(&out, c.image, func(tab *table) { tab.image(c.image, now) }))
		if diff := cmp.Diff(c.want, out.String()); diff != "" {
			t.Errorf("show %s (-want +got):\n%s", c.image.ID, diff)
		}
	}
}

func TestExplainImage(t *testing.T) {
	t.Parallel()
	for text, err := range map[string]error{
		"openstack server delete one two":   &imagesync.InUseError{Instances: []string{"one", "two"}},
		"try again when it has ended":       &imagesync.InUseError{},
		"image prune --unused-for":          imagesync.ErrNoSpace,
		"choose another --name":             imagesync.ErrExists,
		"nothing half-done":                 control.ErrAgentEnded,
		"compute-agent image list":          imagesync.ErrNotFound,
		"another command runs":              imagesync.ErrLocked,
		"some other error without a remedy": errors.New("some other error without a remedy"),
	} {
		require.ErrorContains(t, explainImage(fmt.Errorf("do it: %w", err)), text)
	}
	require.NoError(t, explainImage(nil))
}

// TestFileAppearsWhole covers both ways to write one: without a name, and beside its target.
func TestFileAppearsWhole(t *testing.T) {
	t.Parallel()
	for _, nameless := range []bool{true, false} {
		for _, force := range []bool{true, false} {
			dir := t.TempDir()
			target := filepath.Join(dir, "archive")
			if force {
				require.NoError(t, os.WriteFile(target, []byte("old"), 0o600))
			}
			open := func() *file {
				f, err := createFile(target, force)
				require.NoError(t, err)
				if !nameless {
					require.NoError(t, f.Close())
					f.File, err = os.CreateTemp(dir, ".archive.*")
					require.NoError(t, err)
					f.name = f.Name()
				}
				_, err = io.WriteString(f, "new")
				require.NoError(t, err)
				return f
			}
			require.NoError(t, open().discard())
			f := open()
			require.NoError(t, f.commit())
			require.NoError(t, f.discard(), "a second end is harmless")
			got, err := os.ReadFile(target)
			require.NoError(t, err)
			require.Equal(t, "new", string(got))
			entries, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Len(t, entries, 1, "nothing beside it")
			_, err = createFile(target, false)
			require.ErrorContains(t, err, "--force")
		}
	}
}

func TestImageCommandsHaveExamples(t *testing.T) {
	t.Parallel()
	for _, cmd := range newImageCommand().Commands() {
		require.NotEmpty(t, cmd.Example, cmd.Name())
		require.NotNil(t, cmd.Flags().Lookup("format"), cmd.Name())
	}
}
