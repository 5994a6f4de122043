// Package template writes the files that an LXD or Incus image makes from templates
// when a guest is created, copied or started (incus doc/reference/image_format.md).
//
// Templates are the tenant's, and their language (pongo2) has loops, recursion and
// filters that make any amount of text. So they are rendered in a child process
// without privileges that dies when it takes too much memory or time, and no tag that
// reads a file exists there. Targets are resolved by the kernel as if the guest's root
// were the root of everything (openat2, RESOLVE_IN_ROOT): links in the guest mean what
// they mean to the guest, and none leads out of it.
//
// What is wrong with one template is a Warning, its file stays as it is, and the
// others are written.
package template

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/imagesync"
)

// Triggers of templates.
const (
	Create = "create" // the guest is made from an image
	Copy   = "copy"   // the guest is made from another guest, by way of its snapshot
	Start  = "start"  // the guest is about to start
)

// Vars are what templates know about the guest besides their own properties.
type Vars struct {
	Instance map[string]string            `json:"instance"` // name, architecture, type, privileged, ephemeral
	Config   map[string]string            `json:"config"`   // for config_get too
	Devices  map[string]map[string]string `json:"devices"`
}

// Request says which templates of an image to apply to which guest.
type Request struct {
	Image    imagesync.Image
	Triggers []string // in the order in which they happen
	Root     string   // where the guest's root file system is mounted
	// IDBase and IDCount are the guest's block of host ids. They are used if the owner
	// of Root is in it; else the ids in Root are not shifted.
	IDBase, IDCount uint32
	Vars            Vars
}

// Warning tells why a file was left as it was.
type Warning struct {
	Path   string // in the guest
	Reason string
}

// String gives both.
func (w Warning) String() string { return w.Path + ": " + w.Reason }

// Needed tells whether an image has a template for one of the triggers.
func Needed(image imagesync.Image, triggers ...string) bool {
	for _, t := range image.Metadata.Templates {
		for _, trigger := range triggers {
			if slices.Contains(t.When, trigger) {
				return true
			}
		}
	}
	return false
}

// Apply renders the templates of the triggers and writes their files. The guest must
// not run. Applying again writes the same files again. An error is the host's.
func Apply(ctx context.Context, r Request) ([]Warning, error) {
	return applyWithin(ctx, r, renderTimeout)
}

// applyWithin does so with a limit for the rendering.
func applyWithin(ctx context.Context, r Request, limit time.Duration) ([]Warning, error) {
	if !Needed(r.Image, r.Triggers...) {
		return nil, nil
	}
	items, warnings := collect(r)
	results, err := render(ctx, items, r.Vars, limit)
	if err != nil {
		return warnings, fmt.Errorf("render templates of image %s: %w", r.Image.ID, err)
	}
	root, err := openRoot(r.Root, r.IDBase, r.IDCount)
	if err != nil {
		return warnings, fmt.Errorf("apply templates of image %s: %w", r.Image.ID, err)
	}
	defer root.close()
	for i, item := range items {
		reason := results[i].Error
		if reason == "" {
			if err := root.write(item.Path, results[i].Text, item.rule); err != nil {
				reason = err.Error()
			}
		}
		if reason != "" {
			warnings = append(warnings, Warning{Path: item.Path, Reason: reason})
		}
	}
	return warnings, nil
}

// item is one file to be made.
type item struct {
	Path       string            `json:"path"`
	Trigger    string            `json:"trigger"`
	Text       string            `json:"text"`
	Properties map[string]string `json:"properties"`

	rule rule
}

// collect reads the templates of the triggers, in the order of triggers and paths.
func collect(r Request) (items []item, warnings []Warning) {
	templates := r.Image.Metadata.Templates
	for _, trigger := range r.Triggers {
		for _, path := range slices.Sorted(maps.Keys(templates)) {
			t := templates[path]
			if !slices.Contains(t.When, trigger) {
				continue
			}
			rule, err := ruleOf(t)
			var text string
			if err == nil {
				text, err = read(r.Image.TemplatesDir, t.Template)
			}
			if err == nil && len(items) == maxTemplates {
				err = fmt.Errorf("more than %d templates", maxTemplates)
			}
			if err != nil {
				warnings = append(warnings, Warning{Path: path, Reason: err.Error()})
				continue
			}
			items = append(items, item{Path: path, Trigger: trigger, Text: text, Properties: t.Properties, rule: rule})
		}
	}
	return items, warnings
}

const (
	// maxTemplates bounds the files of one image.
	maxTemplates = 256
	// maxText bounds a template and what it makes; seeds of cloud-init are a few kilobytes.
	maxText = 1 << 20
)

// read reads a template. The directory came out of the tenant's archive: links in it are not followed.
func read(dir, name string) (string, error) {
	if dir == "" {
		return "", errors.New("the image has no templates directory")
	}
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open templates: %w", err)
	}
	defer unix.Close(at) //nolint:errcheck // only a name
	file, err := openRegular(at, name, unix.O_RDONLY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return "", fmt.Errorf("open template %q: %w", name, err)
	}
	defer file.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.LimitReader(file, maxText+1))
	if err != nil {
		return "", fmt.Errorf("read template %q: %w", name, err)
	}
	if len(text) > maxText {
		return "", fmt.Errorf("template %q is larger than %d bytes", name, maxText)
	}
	return string(text), nil
}

// rule says how a file is written.
type rule struct {
	createOnly bool
	uid, gid   int64  // -1: root's, or that of the file that is there
	mode       uint32 // noMode: 0644, or that of the file that is there
}

const noMode = ^uint32(0)

func ruleOf(t imagesync.Template) (rule, error) {
	r := rule{createOnly: t.CreateOnly, uid: -1, gid: -1, mode: noMode}
	for _, id := range []struct {
		name, text string
		into       *int64
	}{{"uid", t.UID, &r.uid}, {"gid", t.GID, &r.gid}} {
		if id.text == "" {
			continue
		}
		n, err := strconv.ParseUint(id.text, 10, 31)
		if err != nil {
			return rule{}, fmt.Errorf("%s %q is not a number", id.name, id.text)
		}
		*id.into = int64(n)
	}
	if t.Mode != "" {
		n, err := strconv.ParseUint(strings.TrimPrefix(t.Mode, "0o"), 8, 12)
		if err != nil {
			return rule{}, fmt.Errorf("mode %q is not an octal number up to 7777", t.Mode)
		}
		r.mode = uint32(n)
	}
	return r, nil
}
