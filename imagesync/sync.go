package imagesync

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// acceptable says what the store takes; it ends every refusal of a format.
const acceptable = "a root file system as a tar archive (plain, gzip, xz, zstd or bzip2), an LXD unified image, " +
	"the root file system of a split image with its metadata's id in the property lxc_metadata_image, a squashfs, or a cloud disk image " +
	"with an ext4 root, with disk_format raw, root-tar, squashfs or qcow2 and container_format bare"

// flight is one import and those who wait for it.
type flight struct {
	done        chan struct{} // closed by the import when the fields below it are set
	cancel      context.CancelFunc
	waiters     int // guarded by Store.mu
	id          string
	size        int64 // bytes to come; -1 or 0: unknown
	started     time.Time
	received    atomic.Int64
	fingerprint string
	err         error

	landed    bool          // it has brought the content, which another import may have done
	settled   chan struct{} // closed when the field below is set, after done
	unsettled error         // why the content is not known to be on disk
}

// Sync returns the image, importing it if the store does not have its bytes yet.
//
// Callers for one id, and for several ids with the same strong hash, share one
// import, which runs with the first caller's values (its token) and ends early only
// when the last caller has left. A caller whose own context ends gets that error at
// once. Nothing is visible before it is complete and verified.
//
// Errors to test for: *UnacceptableError, ErrHashMismatch, ErrNoSpace, those of
// the Source.
func (s *Store) Sync(ctx context.Context, r Request) (Image, error) {
	if err := r.check(); err != nil {
		return Image{}, err
	}
	if err := s.forgetOtherHalf(r); err != nil {
		return Image{}, err
	}
	for round := 0; ; round++ {
		img, ok, err := s.known(r)
		if ok || err != nil {
			return img, err
		}
		f, leader, err := s.join(ctx, r)
		if err != nil {
			return Image{}, fmt.Errorf("sync image %s: %w", r.ID, err)
		}
		if err := s.wait(ctx, f); err != nil {
			// Another caller's token or connection is no reason to fail this one.
			if !leader && round == 0 && ctx.Err() == nil && !isFinal(err) {
				continue
			}
			return Image{}, named(err, r.ID)
		}
		img, err = s.alias(r, f.fingerprint)
		if errors.Is(err, ErrNotFound) && round == 0 {
			continue // removed by somebody since
		}
		if err == nil && (r.Local || r.Keep) {
			err = s.settledFor(ctx, r, f)
		}
		return img, err
	}
}

// check refuses what no content could make acceptable, before anything is fetched.
func (r *Request) check() error {
	if err := checkName("image", r.ID); err != nil {
		return err
	}
	if strings.HasPrefix(r.ID, LocalPrefix) != r.Local {
		return fmt.Errorf("image id %q: only images of this host begin with %s", r.ID, LocalPrefix)
	}
	if r.HostArch == "" {
		r.HostArch = hostArch()
	}
	refuse := func(format string, args ...any) error {
		return &UnacceptableError{ImageID: r.ID, Found: fmt.Sprintf(format, args...), Want: acceptable}
	}
	if !slices.Contains([]string{"", "raw", "root-tar", "squashfs", "qcow2"}, r.DiskFormat) {
		return refuse("disk_format %q", r.DiskFormat)
	}
	if !slices.Contains([]string{"", "bare"}, r.ContainerFormat) {
		return refuse("container_format %q", r.ContainerFormat)
	}
	if err := r.MetadataImage.check(r.ID); err != nil {
		return err
	}
	for _, algo := range []string{r.Digest, r.MetadataImage.digest()} {
		if algo != "" && hashers[algo] == nil {
			return fmt.Errorf("image %s: unknown hash %q asked for", r.ID, algo)
		}
	}
	if r.Arch != "" && !runsOn(r.Arch, r.HostArch) {
		return &UnacceptableError{ImageID: r.ID, Found: fmt.Sprintf("hw_architecture %q", r.Arch), Want: "an image for this host's " + r.HostArch}
	}
	return nil
}

// hostArch is for callers that do not know better.
func hostArch() string {
	if arch, ok := canonicalArch(runtime.GOARCH); ok {
		return arch
	}
	return runtime.GOARCH
}

// known finds the image without an import: by its id or by the hash of its content.
func (s *Store) known(r Request) (Image, bool, error) {
	s.mu.Lock()
	if a, ok := s.aliases[r.ID]; ok && (r.Local || !s.contents[a.Fingerprint].Doubtful) {
		defer s.mu.Unlock()
		if r.Local {
			return Image{}, false, ErrExists
		}
		if !r.hashed(s.contents[a.Fingerprint]) {
			return Image{}, false, nil
		}
		err := s.use(a, r.Keep)
		return s.image(a), true, err
	}
	fingerprint := ""
	if r.strongHash() {
		for fp, c := range s.contents {
			if c.Hashes[r.HashAlgo] == strings.ToLower(r.HashValue) && r.MetadataImage.is(c) && r.hashed(c) && !c.Doubtful {
				fingerprint = fp
			}
		}
	}
	s.mu.Unlock()
	if fingerprint == "" {
		return Image{}, false, nil
	}
	img, err := s.alias(r, fingerprint)
	if errors.Is(err, ErrNotFound) {
		return Image{}, false, nil
	}
	return img, true, err
}

// hashed tells whether the hashes that the caller wants of a content are known.
func (r *Request) hashed(c content) bool {
	other := r.MetadataImage.digest()
	return (r.Digest == "" || c.Hashes[r.Digest] != "") && (other == "" || c.MetadataHashes[other] != "")
}

// strongHash tells whether equal hashes mean equal content also against an
// attacker who made both; MD5 and SHA-1 do not.
func (r *Request) strongHash() bool {
	return isStrong(r.HashAlgo, r.HashValue) && (r.MetadataImage == nil || isStrong(r.MetadataImage.HashAlgo, r.MetadataImage.HashValue))
}

func isStrong(algo, value string) bool {
	return value != "" && slices.Contains([]string{"sha256", "sha384", "sha512", "sha3_256", "sha3_384", "sha3_512"}, algo)
}

// flightKey is the same for those whom one import serves: the same bytes, with the same hashes of them.
func (r *Request) flightKey() string {
	wanted := "/" + r.Digest + "/" + r.MetadataImage.digest()
	if !r.strongHash() {
		return "id:" + r.ID + wanted
	}
	key := r.HashAlgo + ":" + strings.ToLower(r.HashValue)
	if m := r.MetadataImage; m != nil {
		key += "+" + m.HashAlgo + ":" + strings.ToLower(m.HashValue)
	}
	return key + wanted
}

// join adds the caller to the running import of these bytes or starts it.
func (s *Store) join(ctx context.Context, r Request) (f *flight, leader bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false, os.ErrClosed
	}
	key := r.flightKey()
	if f, ok := s.flights[key]; ok {
		if r.Local {
			return nil, false, ErrExists // who knows whether the bytes are the same
		}
		f.waiters++
		return f, false, nil
	}
	fctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f = &flight{done: make(chan struct{}), settled: make(chan struct{}), cancel: cancel, waiters: 1, id: r.ID, size: r.Size, started: time.Now()}
	s.flights[key] = f
	r.flight = f
	s.work.Go(func() {
		defer cancel()
		s.fly(fctx, key, f, r)
	})
	return f, true, nil
}

// fly runs an import, tells the waiters, and then brings the data to the disk.
func (s *Store) fly(ctx context.Context, key string, f *flight, r Request) {
	defer close(f.settled)
	ctx = reqctx.WithField(ctx, "image_id", r.ID)
	start := time.Now()
	c, witness, err := s.fetchWitnessed(ctx, r)
	s.mu.Lock()
	f.fingerprint, f.err = c.Fingerprint, err
	s.drop(key, f)
	s.mu.Unlock()
	close(f.done)
	if err != nil {
		return
	}
	reqctx.Log(ctx).WithField("fingerprint", c.Fingerprint).WithField("bytes", c.Size).WithField("unpacked_bytes", c.UnpackedSize).
		WithField("entries", c.Entries).WithField("devices_left_out", c.Devices).WithField("elapsed", time.Since(start).Round(time.Millisecond)).
		Info("image imported")
	defer witness.Close() //nolint:errcheck // nothing was written
	if f.landed {         // the others are their imports' to settle
		f.unsettled = s.trySettle(ctx, c, witness)
	}
}

// wait waits for the import or the caller's end. The last to leave cancels it, and
// nobody can join it any more.
func (s *Store) wait(ctx context.Context, f *flight) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f.waiters--
	if f.waiters == 0 {
		for key, running := range s.flights {
			if running == f {
				s.drop(key, f)
			}
		}
		f.cancel()
	}
	return context.Cause(ctx)
}

// drop takes a flight out of the map unless a later one has its place. mu is held.
func (s *Store) drop(key string, f *flight) {
	if s.flights[key] == f {
		delete(s.flights, key)
	}
}

// alias records r.ID as a name of a content, after checking that the content fits
// what Glance says about this id. ErrNotFound: the content is gone.
func (s *Store) alias(r Request, fingerprint string) (Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, ok := s.aliases[r.ID]; ok {
		err := s.use(a, r.Keep)
		return s.image(a), err
	}
	c, ok := s.contents[fingerprint]
	if !ok {
		return Image{}, fmt.Errorf("sync image %s: %w", r.ID, ErrNotFound)
	}
	a := &alias{ID: r.ID, Fingerprint: fingerprint, MetadataImage: r.MetadataImage.id(), Keep: r.Keep, lastUsed: time.Now()}
	if c.Metadata != nil {
		if err := r.checkArch(*c.Metadata); err != nil {
			return Image{}, err
		}
		a.Metadata = *c.Metadata
	} else {
		a.Metadata = makeMetadata(r, c.imported)
	}
	var err error
	if a.refs, err = s.readRefs(r.ID); err == nil {
		err = s.writeJSON(s.path("aliases", r.ID+".json"), a, false)
	}
	if err != nil {
		return Image{}, fmt.Errorf("record image %s: %w", r.ID, err)
	}
	s.aliases[r.ID] = a
	return s.image(a), nil
}

// checkArch compares the image's own statement with Glance's and with the host.
func (r *Request) checkArch(m Metadata) error {
	refuse := func(want string) error {
		return &UnacceptableError{ImageID: r.ID, Found: fmt.Sprintf("architecture %q in its metadata.yaml", m.Architecture), Want: want}
	}
	stated, _ := canonicalArch(r.Arch)
	own, _ := canonicalArch(m.Architecture)
	if r.Arch != "" && own != stated {
		return refuse(fmt.Sprintf("the same as its property hw_architecture %q", r.Arch))
	}
	if !runsOn(own, r.HostArch) {
		return refuse("an image for this host's " + r.HostArch)
	}
	return nil
}

// isFinal tells errors that another attempt with another token cannot change.
func isFinal(err error) bool {
	var bad *UnacceptableError
	return errors.As(err, &bad) || errors.Is(err, ErrNoSpace) || errors.Is(err, os.ErrClosed)
}

// named gives each waiter the refusal under the id that it asked for.
func named(err error, id string) error {
	if bad, ok := errors.AsType[*UnacceptableError](err); ok {
		return &UnacceptableError{ImageID: id, Found: bad.Found, Want: bad.Want}
	}
	return fmt.Errorf("sync image %s: %w", id, err)
}
