package imagesync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Errors that callers may test.
var (
	// ErrHashMismatch: the bytes received are not those that Glance has recorded.
	ErrHashMismatch = errors.New("image content does not match its hash")
	// ErrNoSpace: the file system of the store has not enough room.
	ErrNoSpace = errors.New("no space left in the image store")
	// ErrInUse: the image is used by an instance.
	ErrInUse = errors.New("image is in use")
	// ErrNotFound: the store has no image of that id.
	ErrNotFound = errors.New("image is not in the store")
	// ErrExists: the store has an image of that local name.
	ErrExists = errors.New("image exists in the store")
	// ErrLocked: another process has the store open.
	ErrLocked = errors.New("image store is in use by another process")
)

// InUseError tells who uses an image that was to be removed. It is an ErrInUse.
type InUseError struct {
	Instances []string // UUIDs; empty: an operation of the agent, such as a build or an export
}

// Error implements error.
func (e *InUseError) Error() string {
	if len(e.Instances) == 0 {
		return ErrInUse.Error() + " by a build or an export"
	}
	return fmt.Sprintf("%s by %s", ErrInUse, strings.Join(e.Instances, ", "))
}

// Is makes it an ErrInUse.
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

// UnacceptableError tells that an image can never run here: its content or its
// declared format is not one that the store takes. Nova's ImageUnacceptable.
type UnacceptableError struct {
	ImageID string
	Found   string // what the image is
	Want    string // what would work
}

// Error implements error.
func (e *UnacceptableError) Error() string {
	return fmt.Sprintf("image %s is not acceptable: found %s; want %s", e.ImageID, e.Found, e.Want)
}

// Source gives the bytes of one image; Glance is behind it.
type Source interface {
	// Open starts reading at offset bytes from the beginning. A server that
	// ignores the range is the implementation's affair: it skips. The error of a
	// server that refuses for good (not found, not authorised) implements
	// Permanent() bool returning true and is not retried.
	Open(ctx context.Context, offset int64) (io.ReadCloser, error)
}

// Request says which image is wanted; the fields are Glance's.
type Request struct {
	ID              string
	Size            int64  // bytes, -1 or 0: unknown
	HashAlgo        string // os_hash_algo: sha512, sha256, …; empty: unknown
	HashValue       string // os_hash_value, hexadecimal
	Checksum        string // MD5, hexadecimal; used when HashValue is empty
	DiskFormat      string
	ContainerFormat string
	Arch            string // property hw_architecture in Nova's spelling; empty: the host's
	HostArch        string // the host's architecture in Nova's spelling, e.g. x86_64
	Properties      map[string]string
	Source          Source
	// Digest is a hash that the caller wants to know besides, by Glance's name: Image.Hashes has it. An image that was
	// imported without it is fetched once more. Empty: none.
	Digest string
	// MetadataImage is the first half of a split image, whose second half this is; nil: the image is whole.
	MetadataImage *Part
	// Local: not an image of Glance's. Its ID must begin with LocalPrefix, and no other's may.
	Local bool
	Keep  bool // Prune leaves the image alone

	flight *flight // whose progress the import tells
}

// Part is an image that is a part of another; the fields are those of Request.
type Part struct {
	ID              string
	Size            int64
	HashAlgo        string
	HashValue       string
	Checksum        string
	DiskFormat      string
	ContainerFormat string
	Source          Source
	Digest          string // as that of Request; Image.MetadataHashes has it
}

// LocalPrefix begins the ids of images that are not Glance's. Those are UUIDs, in which
// its letters do not occur.
const LocalPrefix = "local-"

// Image is one image of the store as seen under one Glance id.
type Image struct {
	ID           string
	Fingerprint  string // SHA-256 of the downloaded bytes, of a split image metadata first; hexadecimal
	Path         string // directory of the unpacked root file system, for reading only
	TemplatesDir string // directory of the image's templates; empty: none
	Metadata     Metadata
	// MetadataImage is the Glance id of a split image's other half; empty: the image is whole.
	MetadataImage string
	Size          int64             // bytes downloaded, without the other half
	UnpackedSize  int64             // bytes of file content in the tree
	DiskSize      int64             // bytes that the tree takes on the disk, once for all ids of this content
	Entries       int               // files, directories and links of the tree
	Hashes        map[string]string // of the downloaded bytes, hexadecimal, by Glance's algorithm name
	// MetadataHashes are those of a split image's other half, which Hashes does not cover; nil: the content came in one piece.
	MetadataHashes map[string]string
	Imported       time.Time
	LastUsed       time.Time
	Keep           bool     // only Remove removes it, not Prune
	SameContent    []string // other ids of the same content, sorted
	Instances      []string // UUIDs of the instances that use it, sorted
}

// Options configure a store. Zero values take the default that each field names.
type Options struct {
	Dir              string        // required
	MaxImageBytes    int64         // largest download; 0: no limit
	MaxUnpackedBytes int64         // largest tree, logical bytes; 0: 100 GiB
	MaxEntries       int           // most files in a tree; 0: 2,000,000
	ReserveBytes     int64         // free space that an import must leave; 0: 256 MiB
	Timeout          time.Duration // of one import; 0: 1 h
	Retries          int           // attempts in a row without progress; 0: 4, Nova's 1 + num_retries
	RetryDelay       time.Duration // between attempts; 0: 1 s
	StallTimeout     time.Duration // longest silence of a connection; 0: 60 s
	Parallel         int           // imports at the same time; 0: 2
	XZ               string        // path of the xz program; empty: /usr/bin/xz
	Unsquashfs       string        // path of unsquashfs; empty: /usr/bin/unsquashfs
}

func (o Options) withDefaults() Options {
	setDefault(&o.MaxUnpackedBytes, 100<<30)
	setDefault(&o.MaxEntries, 2_000_000)
	setDefault(&o.ReserveBytes, 256<<20)
	setDefault(&o.Timeout, time.Hour)
	setDefault(&o.Retries, 4)
	setDefault(&o.RetryDelay, time.Second)
	setDefault(&o.StallTimeout, time.Minute)
	setDefault(&o.Parallel, 2)
	setDefault(&o.XZ, "/usr/bin/xz")
	setDefault(&o.Unsquashfs, "/usr/bin/unsquashfs")
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
