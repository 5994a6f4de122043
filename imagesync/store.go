package imagesync

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Store is an open image store. Its methods may be called concurrently.
type Store struct {
	o      Options
	kernel kernel
	lock   *os.File      // held from Open to Close
	slots  chan struct{} // one token per import that may run
	work   sync.WaitGroup

	mu       sync.Mutex // guards the fields below and every change under images, aliases and refs
	closed   bool
	contents map[string]content   // by fingerprint
	aliases  map[string]*alias    // by Glance id
	flights  map[string]*flight   // imports in flight, by flightKey
	holds    map[string]int       // by image id; see Hold
	landed   map[string]time.Time // when this process imported a content; see landing
	left     []content            // what an earlier process has left unsettled
}

// kernel is what the store asks of the running one.
type kernel struct {
	bootID   func() (string, error)
	syncfs   func(dir *os.File) error
	exchange func(a, b string) error
}

func running() kernel {
	return kernel{bootID: bootID, syncfs: func(dir *os.File) error { return unix.Syncfs(int(dir.Fd())) }, exchange: exchange}
}

// Open opens the store in o.Dir, making it if needed, and clears what a crash has
// left. It fails with ErrLocked when another process has it open.
func Open(o Options) (*Store, error) { return openUnder(running(), o) }

// openUnder does so under some kernel.
func openUnder(k kernel, o Options) (*Store, error) {
	o = o.withDefaults()
	if !filepath.IsAbs(o.Dir) {
		return nil, fmt.Errorf("open image store: %q is not an absolute path", o.Dir)
	}
	s := &Store{
		o:        o,
		kernel:   k,
		slots:    make(chan struct{}, o.Parallel),
		contents: map[string]content{},
		aliases:  map[string]*alias{},
		flights:  map[string]*flight{},
		holds:    map[string]int{},
		landed:   map[string]time.Time{},
	}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", o.Dir, err)
	}
	s.settleLeft()
	return s, nil
}

func (s *Store) open() error {
	// Guests pass through the directories above; the store itself is closed to others.
	if err := os.MkdirAll(filepath.Dir(s.o.Dir), 0o755); err != nil { //nolint:gosec // see above
		return err
	}
	for _, dir := range []string{s.o.Dir, s.path("images"), s.path("aliases"), s.path("refs"), s.path("retired"), s.path("staging")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	// A directory that packaging made may be readable by all; setuid files of images must not be.
	if err := os.Chmod(s.o.Dir, 0o700); err != nil { //nolint:gosec // a directory needs its x bit
		return err
	}
	lock, err := os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return lockedBy(s.path("lock"))
		}
		return fmt.Errorf("lock: %w", err)
	}
	s.lock = lock
	if err := s.sign(); err != nil {
		return errors.Join(err, s.unlock())
	}
	if err := s.recover(); err != nil {
		return errors.Join(err, s.unlock())
	}
	return nil
}

// recover removes what no crash-free run would have left and reads the rest.
func (s *Store) recover() error {
	staged, err := os.ReadDir(s.path("staging"))
	if err != nil {
		return err
	}
	for _, e := range staged {
		if err := os.RemoveAll(s.path("staging", e.Name())); err != nil {
			return err
		}
	}
	if err := s.dropRetired(); err != nil {
		return err
	}
	if err := s.readContents(); err != nil {
		return err
	}
	if err := s.readAliases(); err != nil {
		return err
	}
	return s.dropDoubtful()
}

// Close cancels running imports, waits for them and gives the store free.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, f := range s.flights {
		f.cancel()
	}
	s.mu.Unlock()
	s.work.Wait()
	return s.unlock()
}

// unlock gives the lock free before the descriptor is closed: a program that this process is about to start has one as well,
// until it runs, and the lock would be held until then.
func (s *Store) unlock() error {
	return errors.Join(unix.Flock(int(s.lock.Fd()), unix.LOCK_UN), s.lock.Close())
}

// Get returns the image known under a Glance id; false: it must be synced first.
func (s *Store) Get(_ context.Context, id string) (Image, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.aliases[id]
	if !ok {
		return Image{}, false, nil
	}
	return s.image(a), true, nil
}

// List returns all images by id.
func (s *Store) List(_ context.Context) ([]Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	images := make([]Image, 0, len(s.aliases))
	for _, id := range slices.Sorted(maps.Keys(s.aliases)) {
		images = append(images, s.image(s.aliases[id]))
	}
	return images, nil
}

// Hold keeps an image from being removed, whether the store has it already or not, until
// the returned function is called. It bridges the time between Sync and Acquire and that
// of an export; it does not outlive the process.
func (s *Store) Hold(id string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds[id]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.holds[id]--; s.holds[id] == 0 {
			delete(s.holds, id)
		}
	})
}

// Acquire records that an instance uses an image, so that it is not removed.
// Repeating it is harmless. ErrNotFound: sync the image first. References are
// on disk but not forced there: after a host crash, acquire again for every
// instance that is left.
func (s *Store) Acquire(id, instanceUUID string) error {
	if err := checkName("instance", instanceUUID); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.aliases[id]
	if !ok {
		return fmt.Errorf("use image %s: %w", id, ErrNotFound)
	}
	if err := os.MkdirAll(s.path("refs", id), 0o700); err != nil {
		return fmt.Errorf("use image %s: %w", id, err)
	}
	if err := os.WriteFile(s.path("refs", id, instanceUUID), nil, 0o600); err != nil {
		return fmt.Errorf("use image %s: %w", id, err)
	}
	a.refs[instanceUUID] = struct{}{}
	return s.touch(a)
}

// Release takes an instance's reference back; one that does not exist is released already.
func (s *Store) Release(id, instanceUUID string) error {
	if err := errors.Join(checkName("image", id), checkName("instance", instanceUUID)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Remove(s.path("refs", id, instanceUUID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("release image %s: %w", id, err)
	}
	_ = os.Remove(s.path("refs", id)) // stays while others use it
	a, ok := s.aliases[id]
	if !ok {
		return nil
	}
	delete(a.refs, instanceUUID)
	return s.touch(a)
}

// Remove forgets a Glance id and, with the last id of its content, removes the
// content. An unknown id is removed already. ErrInUse: an instance uses it.
func (s *Store) Remove(_ context.Context, id string) error {
	doomed, err := s.forget(id)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return removeAll(doomed)
}

// forget removes an alias and moves its content away if that was the last one;
// doomed is the moved directory, empty if there is none.
func (s *Store) forget(id string) (doomed string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.aliases[id]
	if !ok {
		return "", nil
	}
	if len(a.refs) > 0 || s.holds[id] > 0 {
		return "", &InUseError{Instances: slices.Sorted(maps.Keys(a.refs))}
	}
	return s.forgetLocked(a)
}

// forgetLocked does so for an alias that nobody uses. mu is held.
func (s *Store) forgetLocked(a *alias) (doomed string, err error) {
	if err := os.Remove(s.path("aliases", a.ID+".json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	delete(s.aliases, a.ID)
	return s.forgetContent(a.Fingerprint)
}

// forgetContent moves a content without aliases out of the store. mu is held.
func (s *Store) forgetContent(fingerprint string) (doomed string, err error) {
	for _, a := range s.aliases {
		if a.Fingerprint == fingerprint {
			return "", nil
		}
	}
	if _, ok := s.contents[fingerprint]; !ok {
		return "", nil
	}
	doomed, err = os.MkdirTemp(s.path("staging"), "remove-")
	if err != nil {
		return "", err
	}
	if err := os.Rename(s.path("images", fingerprint), filepath.Join(doomed, "image")); err != nil {
		return doomed, err
	}
	delete(s.contents, fingerprint)
	return doomed, nil
}

// image describes an alias. mu is held.
func (s *Store) image(a *alias) Image {
	c := s.contents[a.Fingerprint]
	img := Image{
		ID:             a.ID,
		Fingerprint:    a.Fingerprint,
		Path:           s.path("images", a.Fingerprint, "rootfs"),
		Metadata:       a.Metadata,
		Size:           c.Size,
		UnpackedSize:   c.UnpackedSize,
		DiskSize:       c.disk(),
		Entries:        c.Entries,
		Hashes:         maps.Clone(c.Hashes),
		MetadataHashes: maps.Clone(c.MetadataHashes),
		Imported:       c.imported,
		LastUsed:       a.lastUsed,
		Keep:           a.Keep,
		Instances:      slices.Sorted(maps.Keys(a.refs)),
		MetadataImage:  a.MetadataImage,
	}
	for id, other := range s.aliases {
		if other.Fingerprint == a.Fingerprint && id != a.ID {
			img.SameContent = append(img.SameContent, id)
		}
	}
	slices.Sort(img.SameContent)
	if c.Templates {
		img.TemplatesDir = s.path("images", a.Fingerprint, "templates")
	}
	return img
}

// use records a use, and that the image is to be kept. mu is held.
func (s *Store) use(a *alias, keep bool) error {
	if keep && !a.Keep {
		kept := *a
		kept.Keep = true
		if err := s.writeJSON(s.path("aliases", a.ID+".json"), &kept, true); err != nil {
			return fmt.Errorf("record image %s: %w", a.ID, err)
		}
		a.Keep = true
	}
	return s.touch(a)
}

// touch records a use. mu is held.
func (s *Store) touch(a *alias) error {
	a.lastUsed = time.Now()
	if err := os.Chtimes(s.path("aliases", a.ID+".json"), a.lastUsed, a.lastUsed); err != nil {
		return fmt.Errorf("record use of image %s: %w", a.ID, err)
	}
	return nil
}

// sign leaves the process's id in the lock file, for the message of whoever finds it locked.
func (s *Store) sign() error {
	if err := s.lock.Truncate(0); err != nil {
		return fmt.Errorf("sign lock: %w", err)
	}
	if _, err := s.lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("sign lock: %w", err)
	}
	return nil
}

func lockedBy(file string) error {
	text, err := os.ReadFile(file)
	if pid := strings.TrimSpace(string(text)); err == nil && pid != "" {
		return fmt.Errorf("%w (pid %s)", ErrLocked, strings.ToValidUTF8(pid, "?"))
	}
	return ErrLocked
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(s.o.Dir, filepath.Join(elem...))
}

// nameForm is what ids may look like: they become file names.
var nameForm = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_-]{0,127}$`)

// CheckID tells whether a string may be an image's id: it becomes a file name and a part of an address.
func CheckID(id string) error { return checkName("image", id) }

func checkName(what, name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("%s id %q is not a UUID", what, strings.ToValidUTF8(name, "?"))
	}
	return nil
}

func removeAll(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}
