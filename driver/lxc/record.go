package lxc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// record is what the host remembers about an instance, enough to start it without the
// control plane. It is written by Create alone: a start waits for no disk.
type record struct {
	Spec   driver.Spec
	RootFS string
}

const recordSuffix = ".json"

var (
	uuidForm = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z-]{0,62}$`)
	// A name is part of cgroup paths, of the AppArmor profile and of the command socket.
	nameForm = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_.-]{0,62}$`)
	hostForm = regexp.MustCompile(`^[0-9A-Za-z]([0-9A-Za-z.-]{0,62}[0-9A-Za-z])?$`)
	archForm = regexp.MustCompile(`^[0-9a-z_]{2,16}$`)
	envForm  = regexp.MustCompile(`^[A-Za-z_][0-9A-Za-z_]*$`)
)

// reservedIDs are the host ids that no guest may be mapped to: system users, people.
const reservedIDs = 65536

// validate refuses everything that could bend the configuration file or a path.
func (d *Driver) validate(s driver.Spec, rootfs string) error {
	switch {
	case !uuidForm.MatchString(s.UUID):
		return fmt.Errorf("uuid %q is not valid", s.UUID)
	case !nameForm.MatchString(s.Name):
		return fmt.Errorf("name %q is not valid for a container", s.Name)
	case s.Hostname != "" && !hostForm.MatchString(s.Hostname):
		return fmt.Errorf("host name %q is not valid", s.Hostname)
	case s.Arch != "" && !archForm.MatchString(s.Arch):
		return fmt.Errorf("architecture %q is not valid", s.Arch)
	case !plainPath(rootfs):
		return fmt.Errorf("root file system %q is not an absolute, clean path without blanks", rootfs)
	case s.Limits.Privileged && !d.o.AllowPrivileged:
		return fmt.Errorf("privileged containers are not allowed on this host: %w", driver.ErrUnsupported)
	case !s.Limits.Privileged && (s.IDs.Base < reservedIDs || s.IDs.Size == 0 || s.IDs.Base+s.IDs.Size < s.IDs.Base):
		return fmt.Errorf("id range %d+%d is not usable for a guest", s.IDs.Base, s.IDs.Size)
	case s.Limits.CPUSet != "" && strings.Trim(s.Limits.CPUSet, "0123456789,-") != "":
		return fmt.Errorf("cpu set %q is not a list of CPUs", s.Limits.CPUSet)
	}
	for _, b := range s.Binds {
		if !plainPath(b.Source) || !plainPath("/"+b.Target) || b.Target == "" {
			return fmt.Errorf("bind of %q at %q: not clean paths without blanks", b.Source, b.Target)
		}
	}
	for k, v := range s.Env {
		if !envForm.MatchString(k) || strings.ContainsAny(v, "\n\r\x00") {
			return fmt.Errorf("environment variable %q is not valid", k)
		}
	}
	return nil
}

// plainPath tells whether a path can stand in a liblxc configuration line and in a
// process title without quoting.
func plainPath(p string) bool {
	return filepath.IsAbs(p) && filepath.Clean(p) == p && !strings.ContainsAny(p, " \t\n\r\x00:\\")
}

func (d *Driver) containerDir(name string) string { return filepath.Join(d.o.LXCPath, name) }
func (d *Driver) configFile(name string) string   { return filepath.Join(d.containerDir(name), "config") }
func (d *Driver) logDir(name string) string       { return filepath.Join(d.o.LogDir, name) }
func (d *Driver) logFile(name string) string      { return filepath.Join(d.logDir(name), "lxc.log") }

func (d *Driver) consoleFile(name string) string {
	return filepath.Join(d.logDir(name), "console.log")
}

func (d *Driver) recordFile(uuid string) string {
	return filepath.Join(d.o.StateDir, uuid+recordSuffix)
}

// load returns the record of an instance, or ErrNotFound.
func (d *Driver) load(uuid string) (record, error) {
	if !uuidForm.MatchString(uuid) {
		return record{}, fmt.Errorf("instance %q: %w", uuid, driver.ErrNotFound)
	}
	b, err := os.ReadFile(d.recordFile(uuid))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, fmt.Errorf("instance %s: %w", uuid, driver.ErrNotFound)
	}
	if err != nil {
		return record{}, fmt.Errorf("read record: %w", err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return record{}, fmt.Errorf("read record %s: %w", uuid, err)
	}
	return r, nil
}

func (d *Driver) save(r record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return writeFile(d.recordFile(r.Spec.UUID), b, true)
}

func (d *Driver) remove(uuid string) error {
	if err := os.Remove(d.recordFile(uuid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record: %w", err)
	}
	return nil
}

// records returns all of them, in the order of their UUIDs.
// A record that cannot be read is logged and left out: one broken instance must not
// stop the others.
func (d *Driver) records(ctx context.Context) ([]record, error) {
	entries, err := os.ReadDir(d.o.StateDir)
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	var records []record
	for _, e := range entries {
		uuid, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok || !e.Type().IsRegular() {
			continue
		}
		r, err := d.load(uuid)
		if errors.Is(err, driver.ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			reqctx.Log(ctx).WithError(err).WithField("instance", uuid).Error("cannot read instance record")
			continue
		}
		records = append(records, r)
	}
	return records, nil
}

// writeFile replaces a file so that a crash of the agent leaves the old or the new
// content, and a crash of the host as well if durable.
func writeFile(path string, content []byte, durable bool) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // gone already when all went well
	_, err = tmp.Write(content)
	if err == nil && durable {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}
