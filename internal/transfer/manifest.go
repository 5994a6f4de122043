package transfer

import (
	"hash/maphash"
	"sync"

	"golang.org/x/sys/unix"
)

// manifest is what the destination has: it acknowledged it, and it has not changed since.
// Paths are kept as hashes of a secret seed: 5 million files take some 200 MB, and a guest
// cannot make two names that the manifest takes for one.
type manifest struct {
	seed maphash.Seed

	mu    sync.Mutex // guards the fields below
	begun bool
	had   map[uint64]version
	links map[uint64]string // inode of a file with several names -> one that the destination has
}

// version is what an entry was like when it was sent.
type version struct {
	ino   uint64
	ctime int64
	size  int64
}

func newManifest() *manifest {
	return &manifest{seed: maphash.MakeSeed(), had: map[uint64]version{}, links: map[uint64]string{}}
}

func versionOf(st *unix.Stat_t) version {
	v := version{ino: st.Ino, ctime: st.Ctim.Nano()}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		v.size = st.Size
	}
	return v
}

// has tells whether the destination has the entry as it is now.
func (m *manifest) has(path string, st *unix.Stat_t) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.had[maphash.String(m.seed, path)]
	return ok && v == versionOf(st)
}

// begin notes that a pass begins, and tells whether one began before: then the destination
// may have what is gone by now.
func (m *manifest) begin() (again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	again, m.begun = m.begun, true
	return again
}

// link gives another name, which the destination has, of the file.
func (m *manifest) link(ino uint64) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	path, ok := m.links[ino]
	return path, ok
}

// sent is an entry that waits for its acknowledgement.
type sent struct {
	seq     uint64
	had     *manifest // of its tree
	path    string
	version version
	keep    bool // it did not change while the pass went on
	link    bool // the file has several names
}

// acknowledge notes what the destination has applied.
func (m *manifest) acknowledge(s sent) {
	if !s.keep {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.had[maphash.String(m.seed, s.path)] = s.version
	if s.link {
		m.links[s.version.ino] = s.path
	}
}
