package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/control"
)

// lockPatience is how long one process waits for another's hold of the image store: a
// starting agent serves its socket soon, and most commands are short.
const lockPatience = 10 * time.Second

// newImageCommand returns "compute-agent image" with its sub-commands.
func newImageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Look at the images of this node's store, bring some in, take some out",
		Long: `Look at the images of this node's store, bring some in, take some out.

The agent fetches an image from Glance when the first server boots from it, keeps it unpacked, and
removes it when it was unused for long ([image_cache]). These commands work with a running agent
through its control socket, and on the store itself when no agent runs. They need root.

IMAGE is an id, its beginning (four letters or more), or the beginning of the content's fingerprint.`,
		Example: `  compute-agent image list
  compute-agent image import --glance 36adbebc-e44e-480c-a879-237d84122861
  compute-agent image import debian-12.tar.xz --keep
  compute-agent image export 36adbebc
  compute-agent image prune --unused-for 72h --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newImageListCommand(), newImageShowCommand(), newImageImportCommand(), newImageExportCommand(),
		newImageRemoveCommand(), newImagePruneCommand())
	return cmd
}

// outputFlags are what commands have whose results programs read, too.
type outputFlags struct {
	sources config.Sources
	format  string
}

func (f *outputFlags) add(cmd *cobra.Command) {
	addConfigFlags(cmd, &f.sources)
	cmd.Flags().StringVarP(&f.format, "format", "f", "table", "output format: table, json or yaml")
}

func (f *outputFlags) check() error {
	if !slices.Contains([]string{"table", "json", "yaml"}, f.format) {
		return fmt.Errorf("unknown format %q: use table, json or yaml", f.format)
	}
	return nil
}

// open reads the configuration and opens the store.
func (f *outputFlags) open(ctx context.Context) (control.Images, *config.Config, error) {
	if err := f.check(); err != nil {
		return nil, nil, err
	}
	c, _, err := config.Load(f.sources)
	if err != nil {
		return nil, nil, err
	}
	quietLog()
	images, err := openImages(ctx, c)
	return images, c, err
}

// withImages runs fn on the opened store and closes it.
func (f *outputFlags) withImages(ctx context.Context, fn func(images control.Images) error) error {
	images, _, err := f.open(ctx)
	if err != nil {
		return explainImage(err)
	}
	return explainImage(errors.Join(fn(images), images.Close()))
}

func isNoAgent(err error) bool { return errors.Is(err, control.ErrNoAgent) }

// openStore opens the store of this process, and waits a little for one that has it open.
func openStore(ctx context.Context, c *config.Config) (*imagesync.Store, error) {
	deadline := time.Now().Add(lockPatience)
	for {
		store, err := imagesync.Open(imageOptions(c)) //nolint:contextcheck // what it begins lasts until the store is closed
		if !errors.Is(err, imagesync.ErrLocked) || time.Now().After(deadline) {
			return store, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPatience / 20):
		}
	}
}

// explainImage adds to an error what can be done about it.
func explainImage(err error) error {
	var remedy string
	var used *imagesync.InUseError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &used) && len(used.Instances) > 0:
		remedy = "delete these servers first: openstack server delete " + strings.Join(used.Instances, " ")
	case errors.Is(err, imagesync.ErrInUse):
		remedy = "try again when it has ended"
	case errors.Is(err, imagesync.ErrLocked):
		remedy = "the agent starts or stops, or another command runs; try again in a moment"
	case errors.Is(err, imagesync.ErrExists):
		remedy = "choose another --name, or remove that one: compute-agent image rm"
	case errors.Is(err, imagesync.ErrNoSpace):
		remedy = "remove what is not needed: compute-agent image prune --unused-for 1h; or move [lxc] image_dir to a larger file system"
	case errors.Is(err, control.ErrAgentEnded):
		remedy = "see its log, and run the command again: nothing half-done is left in the store"
	case errors.Is(err, imagesync.ErrNotFound):
		remedy = "compute-agent image list shows what there is"
	default:
		return err
	}
	return fmt.Errorf("%w\n%s", err, remedy)
}

// findImage finds the one image that a word names.
func findImage(ctx context.Context, images control.Images, word string) (control.Image, error) {
	listing, err := images.List(ctx)
	if err != nil {
		return control.Image{}, err
	}
	var found []control.Image
	for _, i := range listing.Images {
		if i.ID == word || i.ID == imagesync.LocalPrefix+word {
			return i, nil
		}
		if len(word) >= 4 && (strings.HasPrefix(i.ID, word) || strings.HasPrefix(i.ID, imagesync.LocalPrefix+word) || strings.HasPrefix(i.Fingerprint, word)) {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return control.Image{}, fmt.Errorf("no image %q: %w", word, imagesync.ErrNotFound)
	}
	ids := make([]string, 0, len(found))
	for _, i := range found {
		ids = append(ids, i.ID)
	}
	return control.Image{}, fmt.Errorf("%q names %d images, give the id of one: %s", word, len(found), strings.Join(ids, ", "))
}

func newImageListCommand() *cobra.Command {
	var flags outputFlags
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the images of the store and the imports under way",
		Example: `  compute-agent image list
  compute-agent image list -f json | jq -r '.images[] | select(.instances == []) | .id'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return flags.withImages(cmd.Context(), func(images control.Images) error {
				listing, err := images.List(cmd.Context())
				if err != nil {
					return err
				}
				return flags.write(cmd.OutOrStdout(), listing, func(t *table) { t.listing(listing, time.Now()) })
			})
		},
	}
	flags.add(cmd)
	return cmd
}

func newImageShowCommand() *cobra.Command {
	var flags outputFlags
	cmd := &cobra.Command{
		Use:   "show [flags] IMAGE",
		Short: "Show all that is known of an image",
		Example: `  compute-agent image show 36adbebc
  compute-agent image show 36adbebc -f yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.withImages(cmd.Context(), func(images control.Images) error {
				image, err := findImage(cmd.Context(), images, args[0])
				if err != nil {
					return err
				}
				return flags.write(cmd.OutOrStdout(), image, func(t *table) { t.image(image, time.Now()) })
			})
		},
	}
	flags.add(cmd)
	return cmd
}

func newImageRemoveCommand() *cobra.Command {
	var flags outputFlags
	cmd := &cobra.Command{
		Use:     "rm [flags] IMAGE...",
		Aliases: []string{"delete"},
		Short:   "Remove images from the store",
		Long: `Remove images from the store. One that a server uses is refused, with the names of the servers. Glance
is not touched: the next server that boots from the image brings it back.`,
		Example: `  compute-agent image rm 36adbebc
  compute-agent image rm local-debian-12 local-alpine`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.withImages(cmd.Context(), func(images control.Images) error {
				removed := []string{}
				var errs []error
				for _, word := range args {
					image, err := findImage(cmd.Context(), images, word)
					if err == nil {
						err = images.Remove(cmd.Context(), image.ID)
					}
					if err != nil {
						errs = append(errs, err)
						continue
					}
					removed = append(removed, image.ID)
				}
				err := flags.write(cmd.OutOrStdout(), map[string][]string{"removed": removed}, func(t *table) { t.lines("removed", removed) })
				return errors.Join(append(errs, err)...)
			})
		},
	}
	flags.add(cmd)
	return cmd
}

func newImagePruneCommand() *cobra.Command {
	var flags outputFlags
	var unused time.Duration
	var maxGB int
	var dry bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that no server uses",
		Long: `Remove images that no server uses: those unused for long, and with --max-gb the least recently used until the
rest takes no more than that on the disk. Images imported with --keep stay. Without --unused-for the
time is [image_cache] remove_unused_original_minimum_age_seconds.`,
		Example: `  compute-agent image prune --unused-for 72h --dry-run
  compute-agent image prune --unused-for 0s
  compute-agent image prune --max-gb 20`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			images, c, err := flags.open(cmd.Context())
			if err != nil {
				return explainImage(err)
			}
			o := control.PruneOptions{Unused: c.ImageCache.RemoveUnusedOriginalMinimumAgeSeconds, MaxBytes: int64(maxGB) << 30, DryRun: dry}
			switch {
			case cmd.Flags().Changed("unused-for"):
				o.Unused = unused
			case maxGB > 0:
				o.Unused = -1
			}
			removed, err := images.Prune(cmd.Context(), o)
			if removed != nil {
				verb := "removed"
				if dry {
					verb = "would be removed"
				}
				err = errors.Join(err, flags.write(cmd.OutOrStdout(), map[string][]control.Pruned{"removed": removed}, func(t *table) { t.pruned(verb, removed, time.Now()) }))
			}
			return explainImage(errors.Join(err, images.Close()))
		},
	}
	flags.add(cmd)
	cmd.Flags().DurationVar(&unused, "unused-for", 0, "remove images not used for so long, e.g. 72h; 0s is any time")
	cmd.Flags().IntVar(&maxGB, "max-gb", 0, "remove the least recently used until the images take no more GB on the disk")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only tell what would be removed")
	return cmd
}
