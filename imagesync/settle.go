package imagesync

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// A content is settled when it is known to be on disk. The kernel writes it there in its own time and tells of a write that
// has failed once: by syncfs, those who had a descriptor of the file system open by then (lib/errseq.c). A later
// descriptor hears of it only if nobody else has, and what could not be written is gone from memory as soon as the kernel
// needs the room. So an import opens its descriptor, the witness, before its first byte. A content whose witness has
// heard of a failure, or ended with its process before it was asked, is doubtful. Nobody gets it any more: it is fetched again for
// the next who asks. Servers that have it keep it, for their guests run on it.

// fetchWitnessed imports an image under a witness, which the caller closes if there is no error.
func (s *Store) fetchWitnessed(ctx context.Context, r Request) (c content, witness *os.File, err error) {
	if witness, err = os.Open(s.path("images")); err != nil {
		return content{}, nil, err
	}
	if c, err = s.fetch(ctx, r); err != nil {
		_ = witness.Close()
		return content{}, nil, err
	}
	return c, witness, nil
}

// trySettle settles a content, and says so when that cannot be.
func (s *Store) trySettle(ctx context.Context, c content, witness *os.File) error {
	log := reqctx.Log(ctx).WithField("fingerprint", c.Fingerprint)
	if err := s.kernel.syncfs(witness); err != nil {
		log.WithError(err).WithField("instances", s.users(c.Fingerprint)).
			Error("image may not be whole on the disk; it is fetched again for the next server, and those that have it should be rebuilt")
		if err := s.doubt(c); err != nil {
			log.WithError(err).Warning("doubt about an image not recorded; the next start of the agent has it again")
		}
		return fmt.Errorf("write image to disk: %w", err)
	}
	if err := s.settle(c); err != nil {
		log.WithError(err).Warning("image is on the disk, which is not recorded; the next start of the agent fetches it again")
	}
	return nil
}

// settle unbinds a content that is on disk from the running kernel.
func (s *Store) settle(c content) error {
	used, err := diskUsage(s.path("images", c.Fingerprint))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("measure image: %w", err)
	}
	if _, _, err := s.amend(c, func(c *content) { c.BootID, c.DiskSize = "", used }); err != nil {
		return fmt.Errorf("record image: %w", err)
	}
	return nil
}

// doubt gives a content to nobody any more, whether that can be recorded or not. It stays bound to the running kernel.
func (s *Store) doubt(c content) error {
	s.mu.Lock()
	if now, ok := s.contents[c.Fingerprint]; ok && now.imported.Equal(c.imported) {
		now.Doubtful = true
		s.contents[c.Fingerprint] = now
	}
	s.mu.Unlock()
	_, _, err := s.amend(c, func(c *content) { c.Doubtful = true })
	return err
}

// settleLeft forces to disk, in the background, what an earlier process has left and servers have, so that it outlives a power cut. It
// stays doubtful.
func (s *Store) settleLeft() {
	if len(s.left) == 0 {
		return
	}
	s.work.Go(func() {
		ctx := context.Background()
		witness, err := os.Open(s.path("images"))
		if err == nil {
			defer witness.Close() //nolint:errcheck // nothing was written
			err = s.kernel.syncfs(witness)
		}
		for _, c := range s.left {
			cerr := err
			if cerr == nil {
				cerr = s.settle(c)
			}
			if cerr != nil {
				reqctx.Log(ctx).WithField("fingerprint", c.Fingerprint).WithField("instances", s.users(c.Fingerprint)).WithError(cerr).
					Error("image that servers have is not known to be on disk; a crash of the host loses it")
			}
		}
	})
}

// settledFor waits until an image is on disk of which somebody is told that the store has it for good.
func (s *Store) settledFor(ctx context.Context, r Request, f *flight) error {
	var err error
	select {
	case <-f.settled:
		err = f.unsettled
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err == nil {
		return nil
	}
	if r.Local { // nobody has it to be fetched from again
		err = errors.Join(err, s.Remove(context.WithoutCancel(ctx), r.ID))
	}
	return fmt.Errorf("sync image %s: %w", r.ID, err)
}

// users are the instances that have a content.
func (s *Store) users(fingerprint string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usersLocked(fingerprint)
}

// usersLocked does so where mu is held.
func (s *Store) usersLocked(fingerprint string) []string {
	users := map[string]struct{}{}
	for _, a := range s.aliases {
		if a.Fingerprint == fingerprint {
			maps.Copy(users, a.refs)
		}
	}
	return slices.Sorted(maps.Keys(users))
}

// supplant gives a doubtful content's place to the same one, fetched again. If guests may run on the doubtful one, it lies aside until
// the host is booted anew, and each of them finds the new one at its next start; else it goes with the import's stage. The place is
// never empty, and what guests run on is never in a stage: an agent may be killed anywhere in between. mu is held.
func (s *Store) supplant(c content, image, boot string) error {
	place := s.path("images", c.Fingerprint)
	held := false
	for _, a := range s.aliases {
		held = held || a.Fingerprint == c.Fingerprint && s.holds[a.ID] > 0
	}
	if !held && len(s.usersLocked(c.Fingerprint)) == 0 {
		return s.kernel.exchange(image, place)
	}
	if err := os.MkdirAll(s.path("retired", boot), 0o700); err != nil {
		return err
	}
	aside := s.path("retired", boot, c.Fingerprint+"-"+rand.Text()) // a clock may give one time twice
	if err := os.Rename(image, aside); err != nil {
		return err
	}
	if err := s.kernel.exchange(aside, place); err != nil {
		return errors.Join(err, os.Rename(aside, image))
	}
	return nil
}

// exchange lets two directories change places, in one step where the file system can.
func exchange(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // ZFS before 2.2, NFS
		return exchangeInSteps(a, b)
	}
	if err != nil {
		return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
	}
	return nil
}

// exchangeInSteps does so where b, for a moment, has to be missing.
func exchangeInSteps(a, b string) error {
	waiting := a + ".waits"
	if err := os.Rename(a, waiting); err != nil {
		return err
	}
	if err := os.Rename(b, a); err != nil {
		return errors.Join(err, os.Rename(waiting, a))
	}
	if err := os.Rename(waiting, b); err != nil {
		return errors.Join(err, os.Rename(a, b), os.Rename(waiting, a))
	}
	return nil
}

// dropRetired removes what no guest can run on any more, since the host has been booted anew.
func (s *Store) dropRetired() error {
	boot, err := s.kernel.bootID()
	if err != nil {
		return err
	}
	boots, err := os.ReadDir(s.path("retired"))
	if err != nil {
		return err
	}
	for _, e := range boots {
		if e.Name() == boot {
			continue
		}
		if err := os.RemoveAll(s.path("retired", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// dropDoubtful removes the doubtful contents that no server has.
func (s *Store) dropDoubtful() error {
	for fingerprint, c := range s.contents {
		if !c.Doubtful || len(s.users(fingerprint)) > 0 {
			continue
		}
		reqctx.Log(context.Background()).WithField("fingerprint", fingerprint).
			Warning("removing an image that was not known to be on disk when the agent ended; it is fetched again when a server needs it")
		if err := s.discard(fingerprint); err != nil {
			return err
		}
	}
	left := s.left[:0]
	for _, c := range s.left {
		if _, ok := s.contents[c.Fingerprint]; ok {
			left = append(left, c)
		}
	}
	s.left = left
	return nil
}

// discard removes a content with its ids.
func (s *Store) discard(fingerprint string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, a := range s.aliases {
		if a.Fingerprint == fingerprint {
			if err := os.Remove(s.path("aliases", id+".json")); err != nil {
				return err
			}
			delete(s.aliases, id)
		}
	}
	delete(s.contents, fingerprint)
	return os.RemoveAll(s.path("images", fingerprint))
}
