package imagesync

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxMetadataBytes bounds a metadata.yaml; real ones have a few kilobytes.
const maxMetadataBytes = 1 << 20

// Metadata is the content of metadata.yaml (LXD and Incus doc/reference/image_format.md).
type Metadata struct {
	Architecture string              `yaml:"architecture" json:"architecture"`   // as in the file, e.g. x86_64 or amd64
	CreationDate int64               `yaml:"creation_date" json:"creation_date"` // seconds since 1970
	ExpiryDate   int64               `yaml:"expiry_date,omitempty" json:"expiry_date,omitempty"`
	Properties   map[string]string   `yaml:"properties,omitempty" json:"properties,omitempty"`
	Templates    map[string]Template `yaml:"templates,omitempty" json:"templates,omitempty"` // by absolute path in the guest
}

// Template is a file that is made from the image's templates directory.
type Template struct {
	When       []string          `yaml:"when,omitempty" json:"when,omitempty"` // create, copy, rename, start
	CreateOnly bool              `yaml:"create_only,omitempty" json:"create_only,omitempty"`
	Template   string            `yaml:"template" json:"template"` // file name in templates/
	Properties map[string]string `yaml:"properties,omitempty" json:"properties,omitempty"`
	UID        string            `yaml:"uid,omitempty" json:"uid,omitempty"`
	GID        string            `yaml:"gid,omitempty" json:"gid,omitempty"`
	Mode       string            `yaml:"mode,omitempty" json:"mode,omitempty"`
}

// ParseMetadata reads and validates a metadata.yaml: at most 1 MiB, both mandatory
// fields there, template names plain file names and targets clean absolute paths.
func ParseMetadata(r io.Reader) (Metadata, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxMetadataBytes+1))
	if err != nil {
		return Metadata{}, fmt.Errorf("read metadata.yaml: %w", err)
	}
	if len(data) > maxMetadataBytes {
		return Metadata{}, fmt.Errorf("metadata.yaml is larger than %d bytes", maxMetadataBytes)
	}
	var m Metadata
	if err := yaml.NewDecoder(bytes.NewReader(data)).Decode(&m); err != nil {
		return Metadata{}, fmt.Errorf("parse metadata.yaml: %w", err)
	}
	return m, m.validate()
}

func (m Metadata) validate() error {
	if m.Architecture == "" {
		return errors.New("metadata.yaml has no architecture")
	}
	if _, ok := canonicalArch(m.Architecture); !ok {
		return fmt.Errorf("metadata.yaml has an unknown architecture %q", m.Architecture)
	}
	if m.CreationDate <= 0 {
		return errors.New("metadata.yaml has no creation_date")
	}
	for _, target := range slices.Sorted(maps.Keys(m.Templates)) {
		t := m.Templates[target]
		if !strings.HasPrefix(target, "/") || strings.ContainsRune(target, 0) || slices.Contains(strings.Split(target, "/"), "..") {
			return fmt.Errorf("metadata.yaml has a template for %q, which is not an absolute path without '..'", target)
		}
		if t.Template == "" || t.Template == "." || t.Template == ".." || strings.ContainsAny(t.Template, "/\x00") {
			return fmt.Errorf("metadata.yaml names the template %q for %q, which is not a file name", t.Template, target)
		}
	}
	return nil
}

// Arch is the architecture in Nova's spelling, which liblxc knows as well.
func (m Metadata) Arch() string {
	if arch, ok := canonicalArch(m.Architecture); ok {
		return arch
	}
	return m.Architecture
}

// Expired tells whether the image's own expiry date has passed.
func (m Metadata) Expired(now time.Time) bool {
	return m.ExpiryDate > 0 && now.Unix() > m.ExpiryDate
}

// YAML gives the text of a metadata.yaml.
func (m Metadata) YAML() ([]byte, error) {
	out, err := yaml.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode metadata.yaml: %w", err)
	}
	return out, nil
}

// makeMetadata is what an image without metadata.yaml gets: the two mandatory
// fields as nova-lxd wrote them (driver.py:_sync_glance_image_to_lxd), and the
// Glance id and properties besides.
func makeMetadata(r Request, now time.Time) Metadata {
	arch := r.Arch
	if arch == "" {
		arch = r.HostArch
	}
	props := map[string]string{"image_id": r.ID}
	maps.Copy(props, r.Properties)
	return Metadata{Architecture: arch, CreationDate: now.Unix(), Properties: props}
}

// archAliases maps spellings of architectures to Nova's (nova/objects/fields.py:Architecture).
var archAliases = map[string]string{
	"x86_64": "x86_64", "amd64": "x86_64",
	"i686": "i686", "i586": "i686", "i486": "i686", "i386": "i686", "x86": "i686",
	"aarch64": "aarch64", "arm64": "aarch64",
	"armv7l": "armv7l", "armhf": "armv7l", "armv7": "armv7l", "armv8l": "armv7l",
	"armv6l": "armv6l", "armel": "armv6l", "arm": "armv6l",
	"ppc64le": "ppc64le", "ppc64el": "ppc64le", "powerpc64le": "ppc64le",
	"ppc64": "ppc64", "powerpc64": "ppc64", "ppc": "ppc", "powerpc": "ppc",
	"s390x": "s390x", "riscv64": "riscv64", "riscv32": "riscv32",
	"mips": "mips", "mips64": "mips64", "mipsel": "mipsel", "mips64el": "mips64el",
	"loongarch64": "loongarch64", "loong64": "loongarch64",
}

// canonicalArch gives Nova's spelling; false: no architecture that we know.
func canonicalArch(name string) (string, bool) {
	arch, ok := archAliases[strings.ToLower(name)]
	return arch, ok
}

// personalities lists what a host's CPU runs besides its own architecture.
var personalities = map[string][]string{
	"x86_64":  {"i686"},
	"aarch64": {"armv7l", "armv6l"},
	"armv7l":  {"armv6l"},
	"ppc64":   {"ppc"},
}

// runsOn tells whether a host of architecture host runs guests of architecture image;
// both in any spelling.
func runsOn(image, host string) bool {
	i, okI := canonicalArch(image)
	h, okH := canonicalArch(host)
	if !okI || !okH {
		return false
	}
	return i == h || slices.Contains(personalities[h], i)
}
