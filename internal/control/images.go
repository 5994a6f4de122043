// Package control is the way into a running agent for its own command line: HTTP with
// JSON over a unix socket that only root can open. The image store belongs to one process
// at a time; while that is the agent, commands go through here, and Local does the same
// for a command that has opened the store itself.
//
// Each request has a deadline. Long ones stream lines of JSON: progress, and at last a
// result or an error.
package control

import (
	"context"
	"io"
	"time"

	"github.com/compute-agent/compute-agent/imagesync"
)

// Images is the image store, in this process or in the agent's.
type Images interface {
	// List returns all images and the imports in flight.
	List(ctx context.Context) (Listing, error)
	// Import brings an image into the store. progress is called now and then, not at the
	// same time; nil: not at all.
	Import(ctx context.Context, o ImportOptions, progress func(Progress)) (Imported, error)
	// Remove removes an image; *imagesync.InUseError tells who uses it, ErrNotFound that
	// there is none.
	Remove(ctx context.Context, id string) error
	// Prune removes what the options say and returns it.
	Prune(ctx context.Context, o PruneOptions) ([]Pruned, error)
	// Hold keeps an image from being removed until it is released.
	Hold(ctx context.Context, id string) (*Held, error)
	// Close lets go of the store or the connection.
	Close() error
}

// Image is one image of the store.
type Image struct {
	ID           string             `json:"id" yaml:"id"`
	Fingerprint  string             `json:"fingerprint" yaml:"fingerprint"`
	Architecture string             `json:"architecture" yaml:"architecture"`
	Size         int64              `json:"size" yaml:"size"`
	UnpackedSize int64              `json:"unpacked_size" yaml:"unpacked_size"`
	DiskSize     int64              `json:"disk_size" yaml:"disk_size"`
	Entries      int                `json:"entries" yaml:"entries"`
	Hashes       map[string]string  `json:"hashes" yaml:"hashes"`
	Imported     time.Time          `json:"imported_at" yaml:"imported_at"`
	LastUsed     time.Time          `json:"last_used_at" yaml:"last_used_at"`
	Keep         bool               `json:"keep" yaml:"keep"`
	Instances    []string           `json:"instances" yaml:"instances"`
	SameContent  []string           `json:"same_content" yaml:"same_content"`
	Path         string             `json:"path" yaml:"path"`
	TemplatesDir string             `json:"templates_dir,omitempty" yaml:"templates_dir,omitempty"`
	Metadata     imagesync.Metadata `json:"metadata" yaml:"metadata"`
}

// Transfer is an import in flight.
type Transfer struct {
	ID       string    `json:"id" yaml:"id"`
	Received int64     `json:"received" yaml:"received"`
	Size     int64     `json:"size" yaml:"size"` // -1 or 0: unknown
	Started  time.Time `json:"started_at" yaml:"started_at"`
}

// Listing is what the store holds.
type Listing struct {
	Images    []Image    `json:"images" yaml:"images"`
	Transfers []Transfer `json:"transfers" yaml:"transfers"`
	Contents  int        `json:"contents" yaml:"contents"`
	DiskSize  int64      `json:"disk_size" yaml:"disk_size"`
	Free      int64      `json:"free" yaml:"free"`
}

// ImportOptions say what is imported: a stream of bytes under a local name, or an image of
// Glance's.
type ImportOptions struct {
	ID   string    // Glance's id, or imagesync.LocalPrefix and a name
	Body io.Reader // nil: from Glance
	Size int64     // of Body; -1: unknown
	Keep bool
}

// Progress is how far an import is.
type Progress struct {
	Received int64 `json:"received"`
	Size     int64 `json:"size"` // -1 or 0: unknown
}

// Imported is the outcome of an import.
type Imported struct {
	Image    Image `json:"image" yaml:"image"`
	Existing bool  `json:"existing" yaml:"existing"` // the store had it already
}

// PruneOptions are a policy of the store's.
type PruneOptions struct {
	Unused   time.Duration `json:"unused"` // negative: none for their age
	MaxBytes int64         `json:"max_bytes"`
	DryRun   bool          `json:"dry_run"`
}

// Pruned is an image that was removed, or would be.
type Pruned struct {
	ID       string    `json:"id" yaml:"id"`
	LastUsed time.Time `json:"last_used_at" yaml:"last_used_at"`
	Bytes    int64     `json:"bytes" yaml:"bytes"`
	Reason   string    `json:"reason" yaml:"reason"`
}

// Held is an image that stays until Release.
type Held struct {
	Image   Image
	Lost    <-chan struct{} // closed when the agent has ended and cannot keep the promise
	Release func()
}

func describe(i imagesync.Image) Image {
	return Image{
		ID: i.ID, Fingerprint: i.Fingerprint, Architecture: i.Metadata.Architecture, Size: i.Size, UnpackedSize: i.UnpackedSize,
		DiskSize: i.DiskSize, Entries: i.Entries, Hashes: i.Hashes, Imported: i.Imported.UTC(), LastUsed: i.LastUsed.UTC(), Keep: i.Keep,
		Instances: notNil(i.Instances), SameContent: notNil(i.SameContent), Path: i.Path, TemplatesDir: i.TemplatesDir, Metadata: i.Metadata,
	}
}

// notNil makes empty lists of JSON what programs expect.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
