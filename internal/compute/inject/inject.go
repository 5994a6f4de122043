// Package inject writes what a server's request says of it into its new root disk, for images that have no cloud-init to fetch it: files, a key
// for root, the metadata and a password (nova/virt/disk/api.py:inject_data_into_fs). Whatever the image has in their places, nothing outside of
// the disk is read or changed, and nothing is waited for.
package inject

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/internal/guestfile"
	"github.com/compute-agent/compute-agent/internal/shadow"
)

// Settings are what the operator allows.
type Settings struct {
	Enabled  bool // [libvirt] inject_partition is not -2
	Key      bool // [libvirt] inject_key
	Password bool // [libvirt] inject_password
}

// File is a file that the server is to have.
type File struct {
	Path     string
	Contents []byte
}

// Content is what is written. A zero field is left out.
type Content struct {
	Key      string // public keys, a line each
	Metadata map[string]string
	User     string // whose password it is
	Password string
	Files    []File
}

// empty tells that there is nothing to write.
func (c Content) empty() bool {
	return strings.TrimSpace(c.Key) == "" && len(c.Metadata) == 0 && c.Password == "" && len(c.Files) == 0
}

// Warning is something that was not written, although the server goes without it.
type Warning struct {
	What string // key, metadata or password
	Err  error  // has none of it
}

// FileError tells that the image leaves a file no place. Another host could not write it either.
type FileError struct {
	path  string
	cause error
}

func (e *FileError) Error() string {
	return fmt.Sprintf("write the file %q into the root disk: %v", e.path, e.cause)
}

// Unwrap returns what was in the way.
func (e *FileError) Unwrap() error { return e.cause }

// Into writes into the root disk that is mounted at rootfs. The files must be written, the rest need not: it is what nova-compute makes of it
// (nova/virt/libvirt/driver.py:_inject_data). To write the same twice changes nothing.
func Into(ctx context.Context, rootfs string, ids guestfile.IDs, c Content) (warnings []Warning, err error) {
	if c.empty() {
		return nil, nil
	}
	root, err := guestfile.OpenDisk(rootfs, ids)
	if err != nil {
		return nil, fmt.Errorf("open root disk: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"key", func() error { return writeKey(root, c.Key) }},
		{"metadata", func() error { return writeMetadata(root, c.Metadata) }},
		{"password", func() error { return writePassword(ctx, rootfs, c.User, c.Password) }},
	} {
		if err := step.do(); err != nil {
			warnings = append(warnings, Warning{step.what, err})
		}
	}
	for _, f := range c.Files { // last: a file that the request brings is as it says
		if err := writeFile(root, f); err != nil {
			return warnings, &FileError{f.Path, err}
		}
	}
	return warnings, nil
}

// Where things go, and what they may be there.
const (
	rootHome       = "/root"
	sshDir         = rootHome + "/.ssh"
	authorizedKeys = sshDir + "/authorized_keys"
	metadataFile   = "/meta.js"

	keyComment = "# The key of this server's owner, as OpenStack has it"

	fileMode      = 0o644 // of new files
	directoryMode = 0o744 // of the directory that a file is in, if it is new; those above are for all to pass
	privateMode   = 0o700

	// maxKeys bounds an authorized_keys that comes with the image.
	maxKeys = 1 << 20
	// passwordTimeout bounds the wait for a lock that nobody can hold.
	passwordTimeout = 20 * time.Second
)

// rootOnly are the attributes of a file that sshd shall trust.
func rootOnly(mode uint32) guestfile.Attributes {
	owner := uint32(0)
	return guestfile.Attributes{UID: &owner, GID: &owner, Mode: &mode}
}

// writeKey adds the key to those that may log in as root.
func writeKey(root *guestfile.Root, key string) error {
	key = strings.TrimSpace(key)
	if key == "" {
		return nil
	}
	for _, dir := range []string{rootHome, sshDir} {
		if err := root.Mkdir(dir, privateMode, guestfile.Attributes{}); err != nil {
			return err
		}
	}
	if err := root.SetDirectory(sshDir, rootOnly(privateMode)); err != nil {
		return err
	}
	have, err := readKeys(root)
	if err != nil {
		return err
	}
	if !strings.Contains("\n"+have, "\n"+key+"\n") {
		if have != "" && !strings.HasSuffix(have, "\n") {
			have += "\n"
		}
		have += keyComment + "\n" + key + "\n"
	}
	return replace(root, authorizedKeys, []byte(have), rootOnly(0o600))
}

// readKeys reads what the image has.
func readKeys(root *guestfile.Root) (string, error) {
	f, _, err := root.Open(authorizedKeys)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // only read
	have, err := io.ReadAll(io.LimitReader(f, maxKeys+1))
	if err == nil && len(have) > maxKeys {
		err = fmt.Errorf("it is larger than %d bytes", maxKeys)
	}
	if err != nil {
		return "", fmt.Errorf("read %s of the guest: %w", authorizedKeys, err)
	}
	return string(have), nil
}

func writeMetadata(root *guestfile.Root, metadata map[string]string) error {
	if len(metadata) == 0 {
		return nil
	}
	text, err := json.Marshal(metadata)
	if err != nil {
		return err
	}
	return replace(root, metadataFile, text, guestfile.Attributes{})
}

func writePassword(ctx context.Context, rootfs, user, password string) error {
	if password == "" {
		return nil
	}
	dir, err := os.Open(rootfs)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // a directory
	ctx, cancel := context.WithTimeout(ctx, passwordTimeout)
	defer cancel()
	return shadow.SetPassword(ctx, dir, user, password)
}

// writeFile makes a file and the directories that it is in. One that is there keeps its owner and mode.
func writeFile(root *guestfile.Root, f File) error {
	if parent := path.Dir(path.Clean("/" + f.Path)); parent != "/" {
		if err := root.MkdirAll(path.Dir(parent)); err != nil {
			return err
		}
		if err := root.Mkdir(parent, directoryMode, guestfile.Attributes{}); err != nil {
			return err
		}
	}
	return replace(root, f.Path, f.Contents, guestfile.Attributes{})
}

func replace(root *guestfile.Root, name string, text []byte, a guestfile.Attributes) error {
	w, err := root.Create(name, fileMode, a)
	if err != nil {
		return err
	}
	if _, err := w.Write(text); err != nil {
		return errors.Join(fmt.Errorf("write %q of the guest: %w", name, err), w.Discard())
	}
	return w.Commit()
}
