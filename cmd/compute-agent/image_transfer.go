package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/imagesync/pack"
	"github.com/compute-agent/compute-agent/internal/control"
)

// parallelImports is how many images of one command are under way; the store has its own limit.
const parallelImports = 4

func newImageImportCommand() *cobra.Command {
	var flags outputFlags
	var glanceIDs []string
	var name string
	var keep bool
	cmd := &cobra.Command{
		Use:   "import [flags] [FILE | -]",
		Short: "Bring an image into the store, from a file or from Glance",
		Long: `Bring an image into the store before a server boots from it.

With --glance the image is fetched from Glance under its id, with the credentials of the first of the sections
[glance], [service_user], [neutron] and [placement] that has any. A FILE, or - for standard input, becomes an image of
this host's own, local-NAME. A Glance image of the same bytes then needs no download: the store keeps equal
bytes once, under any number of ids.

The formats are those that Glance images may have. An image that nothing uses is removed after some time, see
[image_cache]; with --keep only "image rm" removes it.`,
		Example: `  # the image of servers to come, on every node beforehand
  compute-agent image import --keep --glance 36adbebc-e44e-480c-a879-237d84122861

  # without a network: the bytes that were uploaded to Glance
  compute-agent image import /mnt/debian-12.tar.xz

  # from a pipe
  curl -s https://images.example.org/alpine.tar.xz | compute-agent image import --name alpine -`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (len(glanceIDs) > 0) {
				return errors.New("give either a file (or - for standard input) or --glance ID")
			}
			return flags.withImages(cmd.Context(), func(images control.Images) error {
				var imported []control.Imported
				var err error
				bars := newBars(flags.format == "table")
				if len(args) == 1 {
					imported, err = importFile(cmd.Context(), images, cmd.InOrStdin(), args[0], name, keep, bars)
				} else {
					imported, err = importGlance(cmd.Context(), images, glanceIDs, keep, bars)
				}
				bars.wait()
				if len(imported) > 0 {
					err = errors.Join(err, flags.write(cmd.OutOrStdout(), map[string][]control.Imported{"imported": imported}, func(t *table) { t.imported(imported) }))
				}
				return err
			})
		},
	}
	flags.add(cmd)
	cmd.Flags().StringSliceVar(&glanceIDs, "glance", nil, "id of an image in Glance; may be repeated")
	cmd.Flags().StringVar(&name, "name", "", "name of a local image; otherwise the file's")
	cmd.Flags().BoolVar(&keep, "keep", false, "never remove the image for its age or for space")
	return cmd
}

func (t *table) imported(all []control.Imported) {
	for _, i := range all {
		text := "imported " + i.Image.ID
		if i.Existing {
			text = i.Image.ID + " was in the store"
		}
		if len(i.Image.SameContent) > 0 {
			text += ", stored once with " + strings.Join(i.Image.SameContent, ", ")
		}
		_, _ = fmt.Fprintf(t.w, "%s: %s, %s on disk\n", printable(text), size(i.Image.Size), size(i.Image.DiskSize))
	}
}

// importGlance fetches images side by side. One that fails does not stop the others.
func importGlance(ctx context.Context, images control.Images, ids []string, keep bool, bars *bars) ([]control.Imported, error) {
	results, errs := make([]*control.Imported, len(ids)), make([]error, len(ids))
	var g errgroup.Group
	g.SetLimit(parallelImports)
	for n, id := range ids {
		g.Go(func() error {
			if _, err := uuid.Parse(id); err != nil {
				errs[n] = fmt.Errorf("import %q: not an id of Glance's; openstack image list shows them", id)
				return nil
			}
			bar := bars.add(id, 0)
			got, err := images.Import(ctx, control.ImportOptions{ID: id, Size: -1, Keep: keep}, bar.progress)
			bar.end(err == nil)
			if err != nil {
				errs[n] = fmt.Errorf("import %s: %w", id, err)
				return nil
			}
			results[n] = &got
			return nil
		})
	}
	_ = g.Wait() // each has its own error
	var done []control.Imported
	for _, r := range results {
		if r != nil {
			done = append(done, *r)
		}
	}
	return done, errors.Join(errs...)
}

func importFile(ctx context.Context, images control.Images, stdin io.Reader, file, name string, keep bool, bars *bars) ([]control.Imported, error) {
	body, total := stdin, int64(-1)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("import: %w", err)
		}
		defer f.Close() //nolint:errcheck // only read
		info, err := f.Stat()
		if err != nil {
			return nil, fmt.Errorf("import: %w", err)
		}
		if info.IsDir() {
			return nil, fmt.Errorf("import %s: is a directory; pack it: tar -C %s --numeric-owner --xattrs --acls -c . | compute-agent image import --name NAME -", file, file)
		}
		if body = f; info.Mode().IsRegular() {
			total = info.Size()
		}
		if name == "" {
			name = localName(file)
		}
	}
	if name == "" {
		return nil, errors.New("import from standard input needs --name")
	}
	id := imagesync.LocalPrefix + strings.TrimPrefix(name, imagesync.LocalPrefix)
	bar := bars.add(id, total)
	got, err := images.Import(ctx, control.ImportOptions{ID: id, Body: bar.reader(body), Size: total, Keep: keep}, nil)
	bar.end(err == nil)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", file, err)
	}
	return []control.Imported{got}, nil
}

var (
	archiveSuffix = regexp.MustCompile(`(\.(tar|tgz|txz|squashfs|sqfs|img|raw|qcow2|root))?(\.(gz|xz|zst|bz2))?$`)
	notInName     = regexp.MustCompile(`[^0-9A-Za-z_-]+`)
)

// localName makes a name out of a file's.
func localName(file string) string {
	base := filepath.Base(file)
	name := notInName.ReplaceAllString(archiveSuffix.ReplaceAllString(base, ""), "-")
	const longest = 100
	return strings.Trim(name[:min(len(name), longest)], "-")
}

// exported is the outcome of an export.
type exported struct {
	Image       string `json:"image" yaml:"image"`
	File        string `json:"file" yaml:"file"`
	Bytes       int64  `json:"bytes" yaml:"bytes"`
	SHA256      string `json:"sha256" yaml:"sha256"`
	Compression string `json:"compression" yaml:"compression"`
}

func newImageExportCommand() *cobra.Command {
	var flags outputFlags
	var compression string
	var force bool
	cmd := &cobra.Command{
		Use:   "export [flags] IMAGE [FILE | -]",
		Short: "Write an image as a unified archive, which LXD, Incus and Glance take",
		Long: `Write an image as a unified archive: metadata.yaml, templates/ and rootfs/, with owners, extended attributes,
hard links and holes. LXD and Incus import it, "openstack image create --disk-format raw --container-format bare"
uploads it, and "compute-agent image import" takes it back. FILE is <id>.tar.zst in the current directory unless given;
its ending, or --compression, says how it is compressed. The file appears when it is complete.`,
		Example: `  compute-agent image export 36adbebc
  compute-agent image export 36adbebc /backup/debian.tar.xz
  compute-agent image export 36adbebc debian.tar.xz && incus image import debian.tar.xz --alias debian`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.withImages(cmd.Context(), func(images control.Images) error {
				image, err := findImage(cmd.Context(), images, args[0])
				if err != nil {
					return err
				}
				target, how, err := exportTarget(image.ID, args[1:], compression)
				if err != nil {
					return err
				}
				bars := newBars(flags.format == "table")
				result, err := exportImage(cmd.Context(), images, image.ID, target, how, force, cmd.OutOrStdout(), bars)
				bars.wait()
				if err != nil || target == "-" {
					return err
				}
				return flags.write(cmd.OutOrStdout(), result, func(t *table) {
					_, _ = fmt.Fprintf(t.w, "exported %s to %s: %s, sha256 %s\n", result.Image, result.File, size(result.Bytes), result.SHA256)
				})
			})
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&compression, "compression", "", "zst, xz, gz or none; otherwise what the file's name says, or zst")
	cmd.Flags().BoolVar(&force, "force", false, "replace a file that exists")
	return cmd
}

// exportTarget decides where an image goes and how it is compressed.
func exportTarget(id string, args []string, compression string) (target string, how pack.Compression, err error) {
	how = pack.Zstd
	if compression != "" {
		if how, err = pack.ParseCompression(compression); err != nil {
			return "", 0, err
		}
	}
	if len(args) == 0 {
		return id + how.Suffix(), how, nil
	}
	named, known := pack.FromName(args[0])
	switch {
	case compression == "" && known:
		how = named
	case compression != "" && known && named != how:
		return "", 0, fmt.Errorf("file %q and --compression %s say different things", args[0], compression)
	}
	return args[0], how, nil
}

// exportImage packs an image that is held in the store while it is read.
func exportImage(ctx context.Context, images control.Images, id, target string, how pack.Compression, force bool, stdout io.Writer, bars *bars) (exported, error) {
	held, err := images.Hold(ctx, id)
	if err != nil {
		return exported{}, err
	}
	defer held.Release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-held.Lost:
			cancel(control.ErrAgentEnded)
		case <-ctx.Done():
		}
	}()
	var out output = &stream{Writer: stdout}
	if target != "-" {
		if out, err = createFile(target, force); err != nil {
			return exported{}, fmt.Errorf("export %s: %w", id, err)
		}
	} else if isTerminal(stdout) {
		return exported{}, errors.New("an archive is not written to a terminal; give a file or use a pipe")
	}
	result, err := packImage(ctx, out, &held.Image, how, bars)
	if err == nil {
		err = out.commit()
	}
	if err != nil {
		return exported{}, errors.Join(explainExport(id, target, err), out.discard())
	}
	result.File = target
	return result, nil
}

func packImage(ctx context.Context, out io.Writer, image *control.Image, how pack.Compression, bars *bars) (exported, error) {
	metadata, err := os.ReadFile(filepath.Join(filepath.Dir(image.Path), "metadata.yaml"))
	if err != nil {
		return exported{}, err
	}
	bar := bars.add(image.ID, image.UnpackedSize)
	sum := &summed{w: out, hash: sha256.New()}
	stats, err := pack.Write(ctx, sum, image.Path, pack.Options{
		Compression: how, Metadata: metadata, Templates: image.TemplatesDir, Progress: func(n int64) { bar.progress(control.Progress{Received: n, Size: image.UnpackedSize}) },
	})
	bar.end(err == nil)
	if err == nil && stats.Changed > 0 {
		err = fmt.Errorf("%d files changed while they were read; the store is not to be written to", stats.Changed)
	}
	return exported{Image: image.ID, Bytes: sum.n, SHA256: hex.EncodeToString(sum.hash.Sum(nil)), Compression: how.String()}, err
}

// explainExport says what to do when the archive does not fit.
func explainExport(id, target string, err error) error {
	err = fmt.Errorf("export %s: %w", id, err)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w\nthe archive did not fit and was taken away again; free some space or give a FILE on another file system than that of %s", err, target)
	}
	return err
}
