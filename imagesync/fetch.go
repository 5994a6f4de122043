package imagesync

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/imagesync/unpack"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

const (
	// maxID is the largest owner in an image: guests have 65,536 ids.
	maxID = 65535
	// mismatchAttempts: a wrong hash is nearly always a damaged transfer, so it is
	// fetched once more, as glance.py:GlanceImageServiceV2.download does.
	mismatchAttempts = 2
	// progressInterval is the time between two log lines of a long import.
	progressInterval = 10 * time.Second
)

// refused tells that the content is at fault, without the image's id.
type refused struct {
	found, want string
	// certain: no transfer error looks like this, so the rest need not be fetched to verify the hash.
	certain bool
}

// Error implements error.
func (e *refused) Error() string { return "found " + e.found + "; want " + e.want }

func tooLarge(limit int64, found string) error {
	return &refused{found: found, want: fmt.Sprintf("an image of at most %d bytes", limit), certain: true}
}

// fetch imports one image and makes it part of the store.
func (s *Store) fetch(ctx context.Context, r Request) (content, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return content{}, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.o.Timeout,
		fmt.Errorf("import took longer than %s: %w", s.o.Timeout, context.DeadlineExceeded))
	defer cancel()
	for attempt := 1; ; attempt++ {
		c, err := s.importOnce(ctx, r)
		if errors.Is(err, ErrHashMismatch) && attempt < mismatchAttempts {
			reqctx.Log(ctx).WithField("image_id", r.ID).WithError(err).Warning("image does not match its hash, fetching it again")
			continue
		}
		return c, s.explain(ctx, r, err)
	}
}

// explain turns the error of an import into what callers test for.
func (s *Store) explain(ctx context.Context, r Request, err error) error {
	if err == nil {
		return nil
	}
	var bad *refused
	var archive *unpack.Error
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &bad):
		return &UnacceptableError{ImageID: r.ID, Found: bad.found, Want: bad.want}
	case errors.As(err, &archive):
		return &UnacceptableError{ImageID: r.ID, Found: "an archive that cannot be used: " + archive.Error(), Want: acceptable}
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w (%d bytes must stay free): %w", ErrNoSpace, s.o.ReserveBytes, err)
	}
	return err
}

// importOnce does it all in one pass over the bytes: download, hash, decompress and
// unpack into a staging directory; then verify, and publish by one rename.
func (s *Store) importOnce(ctx context.Context, r Request) (c content, err error) {
	if err := s.checkSize(r); err != nil {
		return content{}, err
	}
	sums, err := newDigest(r.HashAlgo, r.HashValue, r.Checksum)
	if err != nil {
		return content{}, err
	}
	sums.add(r.Digest)
	if r.Local {
		sums.also()
	}
	stage, err := os.MkdirTemp(s.path("staging"), "import-")
	if err != nil {
		return content{}, fmt.Errorf("make staging directory: %w", err)
	}
	defer func() { err = errors.Join(err, removeAll(stage)) }()
	if err := os.Mkdir(filepath.Join(stage, "tree"), 0o755); err != nil { //nolint:gosec // the store itself is closed to others
		return content{}, fmt.Errorf("make staging directory: %w", err)
	}

	other, err := s.importMetadata(ctx, r.MetadataImage, stage)
	if err != nil {
		return content{}, err
	}
	if other != nil {
		sums.fingerprint = other.fingerprint
	}
	body := &download{ctx: ctx, src: r.Source, size: r.Size, limit: s.o.MaxImageBytes, retries: s.o.Retries, delay: s.o.RetryDelay, stall: s.o.StallTimeout}
	defer body.Close() //nolint:errcheck // only read
	counted := &progress{ctx: ctx, r: io.TeeReader(body, sums), id: r.ID, size: r.Size, flight: r.flight, next: time.Now().Add(progressInterval)}
	in := bufio.NewReaderSize(counted, sniffSize)
	verify := func() error { return s.conclude(in, body, sums, nil) }
	stats, err := s.unpackStream(ctx, r, in, stage, s.limits(), verify)
	if err := s.conclude(in, body, sums, err); err != nil {
		return content{}, err
	}
	c = content{
		Size:         counted.n,
		UnpackedSize: stats.Bytes,
		Entries:      stats.Entries,
		Devices:      stats.Devices,
		Hashes:       sums.hex(),
	}
	c.Fingerprint = sums.identity()
	if other != nil {
		c.MetadataHashes = other.hashes
	}
	if c.Metadata, c.Templates, err = arrange(stage, r); err != nil {
		return content{}, err
	}
	c, landed, err := s.publish(filepath.Join(stage, "image"), c)
	r.flight.landed = landed
	return c, err
}

// checkSize refuses what is known to be too large before it is fetched.
func (s *Store) checkSize(r Request) error {
	if s.o.MaxImageBytes > 0 && r.Size > s.o.MaxImageBytes {
		return tooLarge(s.o.MaxImageBytes, fmt.Sprintf("%d bytes", r.Size))
	}
	free, err := s.free()
	if err != nil {
		return err
	}
	// Unpacked it is hardly ever smaller; how much larger shows only on the way.
	if need := max(r.Size, 0) + s.o.ReserveBytes; free < need {
		return fmt.Errorf("%d bytes are free, %d needed: %w", free, need, unix.ENOSPC)
	}
	return nil
}

// conclude reads what is left of the download and decides between the reasons for
// a failure: a broken transfer explains damaged content, not the other way round.
func (s *Store) conclude(in io.Reader, body *download, sums *digest, err error) error {
	if err := body.failure(); err != nil {
		return err
	}
	var bad *refused
	var archive *unpack.Error
	content := errors.As(err, &bad) || errors.As(err, &archive)
	if err != nil && (!content || bad != nil && bad.certain) {
		return err
	}
	if _, derr := io.Copy(io.Discard, in); derr != nil {
		return derr
	}
	if verr := sums.verify(); verr != nil {
		return verr
	}
	return err
}

// unpackStream recognises the stream and unpacks it. verify reads it to its end and
// compares its hash, for what must be known to be right before it is looked into.
func (s *Store) unpackStream(ctx context.Context, r Request, in *bufio.Reader, stage string, limits unpack.Limits, verify func() error) (unpack.Stats, error) {
	tree := filepath.Join(stage, "tree")
	head, err := in.Peek(sniffSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return unpack.Stats{}, err
	}
	f, name := sniff(head)
	if err := checkDeclared(r.DiskFormat, f, name); err != nil {
		return unpack.Stats{}, err
	}
	switch f {
	case formatTar:
		return s.untar(ctx, in, tree, limits)
	case formatGzip, formatXZ, formatZstd, formatBzip2:
		return s.unpackCompressed(ctx, f, name, in, tree, limits)
	case formatSquashfs:
		return s.unsquash(ctx, in, stage, verify)
	case formatQCOW2, formatDisk:
		return s.copyDisk(ctx, f, in, stage, r.HostArch, verify)
	case formatUnknown, formatEmpty, formatForeign:
		return unpack.Stats{}, &refused{found: name, want: acceptable, certain: f == formatForeign}
	}
	return unpack.Stats{}, nil
}

func (s *Store) unpackCompressed(ctx context.Context, f format, name string, in io.Reader, tree string, limits unpack.Limits) (stats unpack.Stats, err error) {
	plain, err := s.decompress(ctx, f, in)
	if err != nil {
		return unpack.Stats{}, err
	}
	defer func() {
		// A decompressor that failed explains why the archive seemed cut off.
		if cerr := plain.Close(); cerr != nil {
			err = cerr
		}
	}()
	buffered := bufio.NewReaderSize(plain, 256<<10)
	head, err := buffered.Peek(sniffSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return unpack.Stats{}, err
	}
	inner, what := sniff(head)
	if inner != formatTar {
		return unpack.Stats{}, &refused{found: what + " compressed with " + name, want: acceptable}
	}
	return s.untar(ctx, buffered, tree, limits)
}

// untar unpacks the archive and reads on to the end of the stream: blocks of
// padding follow the end mark, and the decompressor checks its sums at the end.
func (s *Store) untar(ctx context.Context, r io.Reader, tree string, limits unpack.Limits) (unpack.Stats, error) {
	stats, err := unpack.Tar(ctx, r, tree, limits)
	if err != nil {
		return stats, err
	}
	n, err := io.Copy(onlyZeros{}, io.LimitReader(r, limits.Bytes))
	if err == nil && n == limits.Bytes {
		err = tooLarge(n, fmt.Sprintf("more than %d bytes behind the end of the archive", n))
	}
	return stats, err
}

// onlyZeros takes nothing but zeros: padding may follow an archive's end. Anything else would be left
// out of the image without a word, such as a second archive.
type onlyZeros struct{}

// Write implements io.Writer.
func (onlyZeros) Write(p []byte) (int, error) {
	for i, c := range p {
		if c != 0 {
			return i, &refused{found: "an archive with other data behind its end", want: "one archive, and nothing but zeros after it"}
		}
	}
	return len(p), nil
}

func (s *Store) limits() unpack.Limits {
	return unpack.Limits{Entries: s.o.MaxEntries, Bytes: s.o.MaxUnpackedBytes, Reserve: s.o.ReserveBytes, MaxID: maxID}
}

// publish makes a complete image visible. The same bytes may have come under
// another id meanwhile; then theirs stays, and landed is false.
func (s *Store) publish(image string, c content) (have content, landed bool, err error) {
	boot, err := s.kernel.bootID()
	if err != nil {
		return content{}, false, fmt.Errorf("read boot id: %w", err)
	}
	c.BootID = boot
	c.imported = time.Now()
	if err := s.writeJSON(filepath.Join(image, "image.json"), c, false); err != nil {
		return content{}, false, fmt.Errorf("record image: %w", err)
	}
	have, landed, err = s.land(image, c)
	if err != nil || landed {
		return have, landed, err
	}
	have, err = s.learn(have, c)
	return have, false, err
}

// land gives an image its place unless the store has that content already and does not doubt it.
func (s *Store) land(image string, c content) (have content, first bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, known := s.contents[c.Fingerprint]
	if known && !have.Doubtful {
		return have, false, nil
	}
	if known {
		err = s.supplant(have, image, c.BootID)
	} else {
		err = os.Rename(image, s.path("images", c.Fingerprint))
	}
	if err != nil {
		return content{}, false, fmt.Errorf("publish image: %w", err)
	}
	s.contents[c.Fingerprint] = c
	s.landed[c.Fingerprint] = c.imported
	return c, true, nil
}

// learn adds the hashes that an import has computed of a content which the store has already, when both came in the
// same pieces: a fingerprint does not tell where the first half of a split image ends.
func (s *Store) learn(have, c content) (content, error) {
	if have.Hashes["sha256"] != c.Hashes["sha256"] || have.MetadataHashes["sha256"] != c.MetadataHashes["sha256"] {
		return have, nil
	}
	now, _, err := s.amend(have, func(have *content) {
		have.Hashes, have.MetadataHashes = union(have.Hashes, c.Hashes), union(have.MetadataHashes, c.MetadataHashes)
	})
	if err != nil {
		return content{}, fmt.Errorf("record image: %w", err)
	}
	return now, nil
}

// union leaves both as they are: others may read them.
func union(a, b map[string]string) map[string]string {
	if len(a) == 0 && len(b) == 0 {
		return nil
	}
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// progress counts the bytes of a download and says now and then how far it is.
type progress struct {
	ctx  context.Context //nolint:containedctx // for its log fields; lives for one import
	r    io.Reader
	id   string
	size int64
	n    int64
	next time.Time

	flight *flight // for Store.Transfers
}

// Read implements io.Reader.
func (p *progress) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.n += int64(n)
	if p.flight != nil {
		p.flight.received.Store(p.n)
	}
	if now := time.Now(); now.After(p.next) {
		p.next = now.Add(progressInterval)
		reqctx.Log(p.ctx).WithField("image_id", p.id).WithField("bytes", p.n).WithField("size", p.size).Info("image import goes on")
	}
	return n, err
}
