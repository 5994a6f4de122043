package state

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	bolt "go.etcd.io/bbolt"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// ErrNoRange means that no free stretch of the pool is large enough.
var ErrNoRange = errors.New("no free id range of that size in the pool")

// idRangeBucket maps owners to their ranges.
const idRangeBucket = "id_ranges"

// AllocateRange gives owner a block of size ids out of the pool and records it.
// The same owner gets the same block again, as long as it has the same size. No two
// blocks overlap, also when the pool has changed since. Blocks begin at multiples
// of size from the beginning of a pool entry, so that blocks of one size do not
// fragment the pool. It fails with ErrNoRange when nothing is left.
func (db *DB) AllocateRange(owner string, pool []storage.IDRange, size uint32) (storage.IDRange, error) {
	if owner == "" || size == 0 {
		return storage.IDRange{}, fmt.Errorf("allocate id range: owner %q and size %d must be set", owner, size)
	}
	var got storage.IDRange
	err := db.bolt.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(idRangeBucket))
		if err != nil {
			return err
		}
		taken, err := readRanges(b)
		if err != nil {
			return err
		}
		if have, ok := taken[owner]; ok {
			if have.Size != size {
				return fmt.Errorf("it has %d ids already, not %d", have.Size, size)
			}
			got = have
			return nil
		}
		free, ok := firstFree(pool, taken, size)
		if !ok {
			return ErrNoRange
		}
		got = free
		data, err := json.Marshal(free)
		if err != nil {
			return err
		}
		return b.Put([]byte(owner), data)
	})
	if err != nil {
		return storage.IDRange{}, fmt.Errorf("allocate id range for %s: %w", owner, err)
	}
	return got, nil
}

// ReleaseRange gives the owner's block back. Call it only when no file and no
// process with these ids is left. An unknown owner is no error.
func (db *DB) ReleaseRange(owner string) error { return Delete(db, idRangeBucket, owner) }

// Ranges returns the blocks by owner.
func (db *DB) Ranges() (map[string]storage.IDRange, error) {
	return List[storage.IDRange](db, idRangeBucket)
}

func readRanges(b *bolt.Bucket) (map[string]storage.IDRange, error) {
	taken := map[string]storage.IDRange{}
	err := b.ForEach(func(k, v []byte) error {
		var r storage.IDRange
		if err := json.Unmarshal(v, &r); err != nil {
			return fmt.Errorf("decode range of %s: %w", k, err)
		}
		taken[string(k)] = r
		return nil
	})
	return taken, err
}

// idLimit is the first number that is no id: 2^32-1 means "none" to the kernel.
const idLimit = 1<<32 - 1

// firstFree finds the lowest free block. Arithmetic is in 64 bits, since sums leave 32.
func firstFree(pool []storage.IDRange, taken map[string]storage.IDRange, size uint32) (storage.IDRange, bool) {
	used := slices.SortedFunc(maps.Values(taken), func(a, b storage.IDRange) int { return cmp.Compare(a.Base, b.Base) })
	step := uint64(size)
	for _, p := range pool {
		begin, limit := uint64(p.Base), min(uint64(p.Base)+uint64(p.Size), idLimit)
		candidate := begin
		for _, u := range used {
			end := uint64(u.Base) + uint64(u.Size)
			if end <= candidate {
				continue
			}
			if uint64(u.Base) >= candidate+step {
				break
			}
			candidate = begin + (end-begin+step-1)/step*step
		}
		if candidate+step <= limit {
			return storage.IDRange{Base: uint32(candidate), Size: size}, true //nolint:gosec // below idLimit
		}
	}
	return storage.IDRange{}, false
}
