package imagesync

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// content is image.json: what is known about one unpacked image.
type content struct {
	Fingerprint  string            `json:"fingerprint"`
	Size         int64             `json:"size"`
	UnpackedSize int64             `json:"unpacked_size"`
	DiskSize     int64             `json:"disk_size,omitempty"` // known some time after the import
	Entries      int               `json:"entries"`
	Devices      int               `json:"devices_left_out,omitempty"`
	Hashes       map[string]string `json:"hashes"`             // by Glance's algorithm name
	Metadata     *Metadata         `json:"metadata,omitempty"` // of the image's own metadata.yaml
	// MetadataHashes are those of a split image's other half, by Glance's algorithm name.
	MetadataHashes map[string]string `json:"metadata_hashes,omitempty"`
	Templates      bool              `json:"templates,omitempty"`
	// BootID is set until the data is known to be on disk: a running kernel
	// keeps it in memory however this process ends, another kernel does not have it.
	BootID string `json:"boot_id,omitempty"`
	// Doubtful: what is on disk may not be what was written, and nobody can tell; see settle.go.
	Doubtful bool `json:"doubtful,omitempty"`

	imported time.Time
}

// alias is aliases/<id>.json: a Glance id for a content.
type alias struct {
	ID            string   `json:"id"`
	Fingerprint   string   `json:"fingerprint"`
	Metadata      Metadata `json:"metadata"`
	MetadataImage string   `json:"metadata_image,omitempty"` // Glance id of a split image's other half
	Keep          bool     `json:"keep,omitempty"`

	lastUsed time.Time
	refs     map[string]struct{}
}

func (s *Store) readContents() error {
	entries, err := os.ReadDir(s.path("images"))
	if err != nil {
		return err
	}
	boot, err := s.kernel.bootID()
	if err != nil {
		return err
	}
	for _, e := range entries {
		file := s.path("images", e.Name(), "image.json")
		var c content
		info, err := readJSON(file, &c)
		if err == nil && c.Fingerprint == e.Name() && (c.BootID == "" || c.BootID == boot) {
			c.imported = info.ModTime()
			if c.BootID != "" && !c.Doubtful {
				c.Doubtful = true
				s.left = append(s.left, c)
			}
			s.contents[c.Fingerprint] = c
			continue
		}
		if err != nil && !isDamage(err) {
			return err
		}
		if err := os.RemoveAll(s.path("images", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) readAliases() error {
	entries, err := os.ReadDir(s.path("aliases"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		file := s.path("aliases", e.Name())
		var a alias
		info, err := readJSON(file, &a)
		if err != nil && !isDamage(err) {
			return err
		}
		_, known := s.contents[a.Fingerprint]
		if err != nil || a.ID+".json" != e.Name() || !known {
			if err := os.Remove(file); err != nil {
				return err
			}
			continue
		}
		a.lastUsed = info.ModTime()
		if a.refs, err = s.readRefs(a.ID); err != nil {
			return err
		}
		s.aliases[a.ID] = &a
	}
	return nil
}

// readRefs lists the instances that use an id. They outlive the alias, so that an
// image which comes back after a host crash is still in use.
func (s *Store) readRefs(id string) (map[string]struct{}, error) {
	refs := map[string]struct{}{}
	entries, err := os.ReadDir(s.path("refs", id))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		refs[e.Name()] = struct{}{}
	}
	return refs, nil
}

// isDamage tells a record that a power cut or a foreign hand has spoilt from a disk that fails.
func isDamage(err error) bool {
	var syntax *json.SyntaxError
	var wrong *json.UnmarshalTypeError
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.As(err, &syntax) || errors.As(err, &wrong) ||
		strings.Contains(err.Error(), "unexpected end of JSON input")
}

func readJSON(file string, into any) (os.FileInfo, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return os.Stat(file)
}

// writeJSON makes or replaces file by one rename. A new record is not forced to disk here: see settle. One that
// replaces another is: a file system may keep the rename and lose what the file holds, and with it both.
func (s *Store) writeJSON(file string, v any, replaces bool) error {
	tmp, err := s.draft(v, replaces)
	if err != nil {
		return err
	}
	return place(tmp, file)
}

// draft writes a record that is yet to be put into its place.
func (s *Store) draft(v any, forced bool) (file string, err error) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return "", err
	}
	tmp, err := os.CreateTemp(s.path("staging"), "record-")
	if err != nil {
		return "", err
	}
	_, err = tmp.Write(append(data, '\n'))
	if err == nil && forced {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		_ = os.Remove(tmp.Name())
		return "", err
	}
	return tmp.Name(), nil
}

// place puts a draft where it belongs, or removes it.
func place(draft, file string) error {
	err := os.Rename(draft, file)
	if err != nil {
		_ = os.Remove(draft)
	}
	return err
}

// amend changes what is recorded of a content. It takes the lock only to look and to rename, as the record is forced to
// disk in between; when somebody else was quicker it begins again. A content that is gone, or has been imported
// again since, is not changed: ok is false.
func (s *Store) amend(was content, change func(*content)) (now content, ok bool, err error) {
	for {
		old, ok := s.still(was)
		if !ok {
			return was, false, nil
		}
		now = old
		change(&now)
		draft, err := s.draft(now, true)
		if err != nil {
			return old, false, err
		}
		done, err := s.replace(old, now, draft)
		if done || err != nil {
			return now, done, err
		}
	}
}

// still finds what is known of a content now.
func (s *Store) still(was content) (content, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, ok := s.contents[was.Fingerprint]
	return now, ok && now.imported.Equal(was.imported)
}

// replace makes a draft the record of a content, unless that has changed since.
func (s *Store) replace(old, now content, draft string) (done bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have, ok := s.contents[old.Fingerprint]; !ok || !reflect.DeepEqual(have, old) {
		return false, os.Remove(draft)
	}
	if err := place(draft, s.path("images", now.Fingerprint, "image.json")); err != nil {
		return false, err
	}
	s.contents[now.Fingerprint] = now
	return true, nil
}

// disk is what a content takes on the disk. Until that is measured it is taken for the content and a block for each file.
func (c *content) disk() int64 {
	if c.DiskSize > 0 {
		return c.DiskSize
	}
	return c.UnpackedSize + 4096*int64(c.Entries)
}

// diskUsage adds up the blocks of a tree, files with several links once.
func diskUsage(dir string) (int64, error) {
	var total int64
	seen := map[uint64]struct{}{}
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			if _, again := seen[st.Ino]; again {
				return nil
			}
			seen[st.Ino] = struct{}{}
		}
		total += st.Blocks * 512
		return nil
	})
	return total, err
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// free tells the bytes that are left on the store's file system.
func (s *Store) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.o.Dir, &st); err != nil {
		return 0, fmt.Errorf("read free space of %s: %w", filepath.Clean(s.o.Dir), err)
	}
	return int64(st.Bavail) * st.Bsize, nil //nolint:gosec // a file system has less than 2^63 bytes
}
