package imagesync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Policy says what Prune removes. What is in use, held or to be kept is never removed.
type Policy struct {
	Unused   time.Duration // images that nobody has asked for since; negative: none for their age
	MaxBytes int64         // then the least recently used, until all take no more on the disk; 0: no cap
	DryRun   bool          // only tell
}

// Pruned is an image that Prune has removed.
type Pruned struct {
	ID       string
	LastUsed time.Time
	Bytes    int64 // that its removal gives back; 0: another id has the same content
	Reason   string
}

// Usage is what the store holds.
type Usage struct {
	Images   int   // ids
	Contents int   // unpacked trees
	Bytes    int64 // on the disk
	Free     int64 // bytes left on the store's file system
}

// Usage tells what the store holds.
func (s *Store) Usage() (Usage, error) {
	free, err := s.free()
	s.mu.Lock()
	defer s.mu.Unlock()
	return Usage{Images: len(s.aliases), Contents: len(s.contents), Bytes: s.bytes(), Free: free}, err
}

// bytes adds up all contents. mu is held.
func (s *Store) bytes() int64 {
	var total int64
	for _, c := range s.contents {
		total += c.disk()
	}
	return total
}

// Prune removes what the policy says, as Nova's image cache manager
// (nova/virt/imagecache.py, remove_unused_original_minimum_age_seconds), and returns it. An
// error of one image does not keep the others.
func (s *Store) Prune(ctx context.Context, p Policy) ([]Pruned, error) {
	plan, orphans := s.plan(p)
	if p.DryRun {
		return plan, nil
	}
	var removed []Pruned
	var errs []error
	for _, doomed := range plan {
		if ctx.Err() != nil {
			return removed, fmt.Errorf("prune images: %w", errors.Join(append(errs, context.Cause(ctx))...))
		}
		done, err := s.removeIfUnused(doomed)
		if err != nil {
			errs = append(errs, fmt.Errorf("remove image %s: %w", doomed.ID, err))
		}
		if done {
			removed = append(removed, doomed)
		}
	}
	for _, fp := range orphans {
		s.mu.Lock()
		doomed, err := s.forgetContent(fp)
		s.mu.Unlock()
		errs = append(errs, err, removeAll(doomed))
	}
	if err := errors.Join(errs...); err != nil {
		return removed, fmt.Errorf("prune images: %w", err)
	}
	return removed, nil
}

// removeIfUnused removes an image unless it was asked for since the plan was made.
func (s *Store) removeIfUnused(p Pruned) (done bool, err error) {
	s.mu.Lock()
	a, ok := s.aliases[p.ID]
	if !ok || a.lastUsed.After(p.LastUsed) || !s.removable(a) {
		s.mu.Unlock()
		return false, nil
	}
	doomed, err := s.forgetLocked(a)
	s.mu.Unlock()
	return err == nil, errors.Join(err, removeAll(doomed))
}

func (s *Store) removable(a *alias) bool { return len(a.refs) == 0 && s.holds[a.ID] == 0 && !a.Keep }

// plan picks what goes, oldest use first, and the contents that have no id.
func (s *Store) plan(p Policy) (plan []Pruned, orphans []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := map[string]int{} // by fingerprint
	var unused []*alias
	for _, a := range s.aliases {
		ids[a.Fingerprint]++
		if s.removable(a) {
			unused = append(unused, a)
		}
	}
	slices.SortFunc(unused, func(a, b *alias) int {
		return cmp.Or(a.lastUsed.Compare(b.lastUsed), cmp.Compare(a.ID, b.ID))
	})
	total, now := s.bytes(), time.Now()
	for fp, c := range s.contents {
		if ids[fp] == 0 && p.Unused >= 0 && now.Sub(c.imported) >= p.Unused && !s.landing(fp) {
			orphans = append(orphans, fp)
			total -= c.disk()
		}
	}
	for _, a := range unused {
		var reason string
		switch {
		case p.Unused >= 0 && now.Sub(a.lastUsed) >= p.Unused:
			reason = "not used for " + now.Sub(a.lastUsed).Round(time.Second).String()
		case p.MaxBytes > 0 && total > p.MaxBytes:
			reason = fmt.Sprintf("the images take %d bytes, more than the cap of %d", total, p.MaxBytes)
		default:
			continue
		}
		gone := Pruned{ID: a.ID, LastUsed: a.lastUsed, Reason: reason}
		if ids[a.Fingerprint]--; ids[a.Fingerprint] == 0 {
			c := s.contents[a.Fingerprint]
			gone.Bytes = c.disk()
			total -= gone.Bytes
		}
		plan = append(plan, gone)
	}
	return plan, orphans
}

// landing tells whether somebody who waited for a content may have yet to give it an id. mu is held.
func (s *Store) landing(fingerprint string) bool {
	landed, ok := s.landed[fingerprint]
	if ok && time.Since(landed) < landingTime {
		return true
	}
	delete(s.landed, fingerprint)
	return false
}

// landingTime is more than enough between the end of an import and the ids of those who waited for it.
const landingTime = 10 * time.Second

// Transfer is an import in flight.
type Transfer struct {
	ID       string
	Received int64
	Size     int64 // -1 or 0: unknown
	Started  time.Time
	Waiting  int // callers that wait for it
}

// Transfers lists the imports in flight, by id.
func (s *Store) Transfers() []Transfer {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Transfer, 0, len(s.flights))
	for _, f := range s.flights {
		out = append(out, Transfer{ID: f.id, Received: f.received.Load(), Size: f.size, Started: f.started, Waiting: f.waiters})
	}
	slices.SortFunc(out, func(a, b Transfer) int { return cmp.Compare(a.ID, b.ID) })
	return out
}
