package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Sources says where values come from. The zero value reads the default files
// and no environment; see the package comment for the order.
type Sources struct {
	Files []string // --config-file, in order
	Dirs  []string // --config-dir, in order, read after Files; each gives its *.conf, sorted
	// Env is the environment as os.Environ returns it; OS_<GROUP>__<OPTION> is looked at.
	Env []string
	// Overrides are command-line values, above everything else; the key is
	// "option" for [DEFAULT] or "section.option".
	Overrides map[string]string

	// order holds Files and Dirs as the command line had them, when the flags were used.
	order []path
	// root stands before the default files' and directories' names, for tests.
	root string
}

// path is one file or directory to read.
type path struct {
	name     string
	dir      bool
	optional bool // a default: may be missing
}

// DefaultFiles are read, where they exist, when no --config-file is given.
func DefaultFiles() []string {
	return []string{"/etc/nova/nova.conf", "/etc/nova/nova-compute.conf", "/etc/compute-agent/compute-agent.conf"}
}

// DefaultDirs are read, where they exist, when no --config-dir is given.
func DefaultDirs() []string {
	return []string{"/etc/nova/nova.conf.d", "/etc/nova/nova-compute.conf.d", "/etc/compute-agent/compute-agent.conf.d"}
}

// Flag is a repeatable command-line flag of a Sources; it satisfies the Value
// interfaces of package flag and of pflag.
type Flag struct {
	sources *Sources
	dir     bool
}

// FileFlag returns the value of --config-file. Used together with DirFlag it
// keeps the order of both flags on the command line.
func (s *Sources) FileFlag() *Flag { return &Flag{sources: s} }

// DirFlag returns the value of --config-dir.
func (s *Sources) DirFlag() *Flag { return &Flag{sources: s, dir: true} }

// Set adds one file or directory.
func (f *Flag) Set(v string) error {
	if v == "" {
		return errors.New("empty path")
	}
	f.sources.order = append(f.sources.order, path{name: v, dir: f.dir})
	if f.dir {
		f.sources.Dirs = append(f.sources.Dirs, v)
	} else {
		f.sources.Files = append(f.sources.Files, v)
	}
	return nil
}

// String lists what was given so far.
func (f *Flag) String() string {
	switch {
	case f.sources == nil:
		return ""
	case f.dir:
		return strings.Join(f.sources.Dirs, ",")
	}
	return strings.Join(f.sources.Files, ",")
}

// Type names the flag's argument in help texts.
func (f *Flag) Type() string {
	if f.dir {
		return "directory"
	}
	return "file"
}

// paths lists everything to read, in order (oslo_config/cfg.py:_parse_config_files).
func (s *Sources) paths() []path {
	var out []path
	if len(s.Files) == 0 {
		for _, f := range DefaultFiles() {
			out = append(out, path{name: s.root + f, optional: true})
		}
	}
	if len(s.Dirs) == 0 {
		for _, d := range DefaultDirs() {
			out = append(out, path{name: s.root + d, dir: true, optional: true})
		}
	}
	if s.order != nil {
		return append(out, s.order...)
	}
	for _, f := range s.Files {
		out = append(out, path{name: f})
	}
	for _, d := range s.Dirs {
		out = append(out, path{name: d, dir: true})
	}
	return out
}

// file is one parsed file: values by normalised section and option name.
type file struct {
	name   string
	values map[name][]entry
	keys   []entry // every assignment, in order
}

// read parses every source file; what cannot be read or parsed is a fault.
func (s *Sources) read(r *Report) []*file {
	var files []*file
	for _, p := range s.paths() {
		names, err := p.files()
		if err != nil {
			r.fault(Finding{File: p.name, Message: reason(err), Remedy: "give an existing, readable path"})
			continue
		}
		for _, n := range names {
			data, err := os.ReadFile(n) // #nosec G304 -- the operator names the files
			switch {
			case err == nil:
				r.Files = append(r.Files, n)
				files = append(files, parseFile(n, data, r))
			case p.optional && errors.Is(err, fs.ErrNotExist):
			default:
				r.fault(Finding{File: n, Message: reason(err), Remedy: "give an existing, readable file"})
			}
		}
	}
	return files
}

// files lists the files that the path stands for.
func (p path) files() ([]string, error) {
	expanded := expandHome(p.name)
	if !p.dir {
		return []string{expanded}, nil
	}
	entries, err := os.ReadDir(expanded)
	if err != nil {
		if p.optional && errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	var names []string
	for _, e := range entries {
		// A leading dot hides a file, as in Python's glob.
		if strings.HasSuffix(e.Name(), ".conf") && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, filepath.Join(expanded, e.Name()))
		}
	}
	slices.Sort(names)
	return names, nil
}

func parseFile(fileName string, data []byte, r *Report) *file {
	entries, errs := parseINI(data)
	for _, e := range errs {
		r.fault(Finding{File: fileName, Line: e.line, Message: e.message, Remedy: e.remedy})
	}
	f := &file{name: fileName, values: map[name][]entry{}, keys: entries}
	for _, e := range entries {
		n := name{normalizeSection(e.section), e.key}
		f.values[n] = append(f.values[n], e)
	}
	return f
}

// environment returns the values of OS_<GROUP>__<OPTION> by variable name.
func (s *Sources) environment() map[string]string {
	out := map[string]string{}
	for _, kv := range s.Env {
		k, v, ok := strings.Cut(kv, "=")
		if ok && strings.HasPrefix(k, "OS_") && strings.Contains(k, "__") {
			out[k] = v
		}
	}
	return out
}

// environmentName is the variable that sets an option (oslo_config/sources/_environment.py).
func environmentName(n name) string {
	return "OS_" + strings.ToUpper(n.section) + "__" + strings.ToUpper(n.option)
}

func expandHome(p string) string {
	rest, ok := strings.CutPrefix(p, "~/")
	if !ok {
		return p
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return p
	}
	return filepath.Join(home, rest)
}

// reason gives the bare cause of a path error; the path stands in the finding already.
func reason(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}
