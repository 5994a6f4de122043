// Package state keeps on disk what must survive a restart of the agent and what
// neither the control plane nor the kernel knows: instance records, operations in
// flight, id ranges. One bbolt file; values are JSON.
package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
)

// lockTimeout bounds the wait for another agent that holds the file: it is
// either about to exit or a second agent, which must not start.
const lockTimeout = 5 * time.Second

// DB is the agent's state file. Its methods may be called concurrently; every
// write is on disk when it returns.
type DB struct {
	bolt *bolt.DB
}

// Open opens or creates the file at path (mode 0600). It fails when another
// process holds it.
func Open(path string) (*DB, error) {
	b, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	return &DB{bolt: b}, nil
}

// Close waits for running transactions and releases the file.
func (db *DB) Close() error {
	if err := db.bolt.Close(); err != nil {
		return fmt.Errorf("close state: %w", err)
	}
	return nil
}

// Put stores v as JSON under key, replacing what was there. What is there already is not written again: every
// write waits for the disk.
func Put[T any](db *DB, bucket, key string, v T) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s/%s: %w", bucket, key, err)
	}
	if same, err := db.holds(bucket, key, data); same || err != nil {
		return err
	}
	err = db.bolt.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(bucket))
		if err != nil {
			return err
		}
		return b.Put([]byte(key), data)
	})
	if err != nil {
		return fmt.Errorf("write %s/%s: %w", bucket, key, err)
	}
	return nil
}

// holds tells whether key has this value; nil: none.
func (db *DB) holds(bucket, key string, data []byte) (same bool, err error) {
	err = db.bolt.View(func(tx *bolt.Tx) error {
		var have []byte
		if b := tx.Bucket([]byte(bucket)); b != nil {
			have = b.Get([]byte(key))
		}
		same = bytes.Equal(have, data)
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("read %s/%s: %w", bucket, key, err)
	}
	return same, nil
}

// Get reads the value under key; false: there is none.
func Get[T any](db *DB, bucket, key string) (T, bool, error) {
	var v T
	found := false
	err := db.bolt.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return nil
		}
		data := b.Get([]byte(key))
		if data == nil {
			return nil
		}
		found = true
		var err error
		v, err = decode[T](data)
		return err
	})
	if err != nil {
		return v, false, fmt.Errorf("read %s/%s: %w", bucket, key, err)
	}
	return v, found, nil
}

// Delete removes key; what does not exist is removed already.
func Delete(db *DB, bucket, key string) error {
	if gone, err := db.holds(bucket, key, nil); gone || err != nil {
		return err
	}
	err := db.bolt.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return nil
		}
		return b.Delete([]byte(key))
	})
	if err != nil {
		return fmt.Errorf("delete %s/%s: %w", bucket, key, err)
	}
	return nil
}

// List reads all values of a bucket by key; an unknown bucket is empty. A damaged value is an error.
func List[T any](db *DB, bucket string) (map[string]T, error) {
	all, damaged, err := ListReadable[T](db, bucket)
	if err != nil {
		return nil, err
	}
	for key, err := range damaged {
		return nil, fmt.Errorf("list %s: decode %s: %w", bucket, key, err)
	}
	return all, nil
}

// ListReadable is List for those to whom the rest matters although some values are damaged; it tells which.
func ListReadable[T any](db *DB, bucket string) (all map[string]T, damaged map[string]error, err error) {
	all, damaged = map[string]T{}, map[string]error{}
	err = db.bolt.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, data []byte) error {
			v, err := decode[T](data)
			if err != nil {
				damaged[string(k)] = err
				return nil
			}
			all[string(k)] = v
			return nil
		})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list %s: %w", bucket, err)
	}
	return all, damaged, nil
}

// ErrDamaged tells of a value that is not what was stored.
var ErrDamaged = errors.New("the stored value is damaged")

func decode[T any](data []byte) (v T, err error) {
	if err := json.Unmarshal(data, &v); err != nil {
		return v, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return v, nil
}
