package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Load reads the sources into a Config.
//
// With faults the Config is nil and the error is an *Error that lists all of
// them. The report is never nil; it holds faults and warnings, and the files read.
func Load(o Sources) (*Config, *Report, error) {
	c := &Config{}
	l := &loader{
		registry: newRegistry(c),
		report:   &Report{},
		env:      o.environment(),
		cli:      map[name]string{},
		values:   map[name]*value{},
	}
	l.files = o.read(l.report)
	complete := len(l.report.Findings) == 0
	for key, v := range o.Overrides {
		section, opt, ok := strings.Cut(key, ".")
		if !ok {
			section, opt = defaultSection, key
		}
		n := name{section, opt}
		if l.registry.byName[n] == nil {
			l.report.fault(Finding{File: fromCommandLine, Section: section, Option: opt, Message: "no such option"})
		}
		l.cli[n] = v
	}
	for _, opt := range l.registry.options {
		l.resolve(opt)
	}
	l.unknownOptions()
	if complete { // with an unreadable file, everything would seem to be missing
		l.check()
	}
	l.report.sort()
	if faults := l.report.Faults(); len(faults) > 0 {
		return nil, l.report, &Error{Faults: faults}
	}
	return c, l.report, nil
}

// New returns a Config with every option at its default, without reading anything.
// Defaults that are looked up on the host (host, my_ip) are looked up.
func New() *Config {
	c := &Config{}
	l := &loader{registry: newRegistry(c), report: &Report{}, values: map[name]*value{}}
	for _, opt := range l.registry.options {
		l.resolve(opt)
	}
	return c
}

// What stands in Finding.File for values that are in no file.
const (
	fromCommandLine = "command line"
	fromEnvironment = "environment"
)

// loader turns the sources into values of options.
type loader struct {
	registry *registry
	report   *Report
	files    []*file // in order of reading
	env      map[string]string
	cli      map[name]string
	values   map[name]*value
	depth    int // of substitutions in progress
}

// value is an option's resolved value.
type value struct {
	raw     []string // as written, before substitution
	texts   []string // after substitution
	file    string   // where it is from; "" for a default
	line    int
	section string // where it was looked up, which auth_section may change
	busy    bool   // being resolved: a reference back here is a loop
	failed  bool   // a fault was reported
	unset   bool   // neither given nor a default
}

// resolve finds, substitutes, converts and stores an option's value, once.
func (l *loader) resolve(o *option) *value {
	if v, ok := l.values[o.name]; ok {
		return v
	}
	v := &value{section: o.section}
	l.values[o.name] = v
	if o.plugin {
		v.section = l.authSection(o.section)
	}
	l.find(o, v)
	if v.unset {
		return v
	}
	v.busy = true
	texts, err := l.substituteAll(v.raw, v.section)
	v.busy = false
	if err == nil && o.number && strings.TrimFunc(texts[0], isSpace) == "" {
		// oslo.config reads an empty number as None. The default is what an
		// operator means by it, and what a container of optional settings needs.
		v.unset = o.def == ""
		texts = []string{o.def}
	}
	if err == nil && !v.unset {
		v.texts = texts
		err = o.set(texts)
	}
	if err != nil {
		v.failed = true
		l.wrong(o, v, err)
	}
	return v
}

// find looks for the raw value: command line, environment, files, default.
func (l *loader) find(o *option, v *value) {
	at := name{v.section, o.option}
	if text, ok := l.cli[o.name]; ok {
		v.raw, v.file = []string{text}, fromCommandLine
		return
	}
	if text, ok := l.env[environmentName(at)]; ok {
		v.raw, v.file = []string{text}, fromEnvironment
		return
	}
	if l.findInFiles(o, v, at) {
		return
	}
	switch {
	case o.computed != nil:
		v.raw = []string{strings.ReplaceAll(o.computed(), "$", "$$")}
	case o.def != "":
		v.raw = []string{o.def}
	default:
		v.unset = true
	}
}

// findInFiles looks through the files, the last one first, and within a file
// for the current name before older ones: a later file wins even with an older
// name. A multi-valued option collects all of them
// (oslo_config/cfg.py:_Namespace._get_file_value).
func (l *loader) findInFiles(o *option, v *value, at name) bool {
	names := []name{at}
	for _, d := range o.deprecated {
		if d.section == o.section {
			d.section = at.section
		}
		names = append(names, d)
	}
	for _, f := range slices.Backward(l.files) {
		for _, n := range names {
			entries := f.values[n]
			if len(entries) == 0 {
				continue
			}
			last := entries[len(entries)-1]
			if n != at {
				l.report.warn(Finding{
					File: f.name, Line: last.line, Section: n.section, Option: n.option,
					Message: "old name of an option", Remedy: "write it as " + at.String(),
				})
			}
			if v.file == "" {
				v.file, v.line = f.name, last.line
			}
			if !o.multi {
				v.raw = []string{last.value}
				return true
			}
			var texts []string
			for _, e := range entries {
				texts = append(texts, e.value)
			}
			v.raw = append(texts, v.raw...)
		}
	}
	return v.file != ""
}

// authSection is the section that the plugin options of a service come from
// (keystoneauth1/loading/conf.py:load_from_conf_options).
func (l *loader) authSection(section string) string {
	o := l.registry.byName[name{section, "auth_section"}]
	if o == nil {
		return section
	}
	v := l.resolve(o)
	if v.failed || v.unset || v.texts[0] == "" {
		return section
	}
	return normalizeSection(v.texts[0])
}

// wrong reports a value that an option does not take.
func (l *loader) wrong(o *option, v *value, err error) {
	f := Finding{File: v.file, Line: v.line, Section: v.section, Option: o.option, Remedy: o.allowed()}
	var ref *referenceError
	isRef := errors.As(err, &ref)
	if isRef && ref.reported {
		return // the option referred to has its own fault
	}
	f.Value = strings.Join(v.raw, "; ")
	switch {
	case o.secret && isRef:
		f.Message, f.Remedy = "the value refers to an option that cannot be used here", "write $$ for a dollar sign"
	case isRef:
		f.Message, f.Remedy = fmt.Sprintf("%q %s", f.Value, ref.text), ref.remedy
	case o.secret:
		f.Message = "the value is " + err.Error()
	default:
		f.Message = fmt.Sprintf("%q is %s", f.Value, err)
	}
	if !isRef && (strings.Contains(f.Value, " #") || strings.Contains(f.Value, " ;")) {
		f.Remedy += "; a comment must start in the first column"
	}
	if o.secret {
		f.Value = mask
	}
	l.report.fault(f)
}

func (r *Report) fault(f Finding) {
	f.Fault = true
	r.Findings = append(r.Findings, f)
}

func (r *Report) warn(f Finding) { r.Findings = append(r.Findings, f) }

// sort puts faults first, then orders by file as read, and line. Sections that
// share credentials through auth_section find the same things: each is kept once.
func (r *Report) sort() {
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		if a.Fault != b.Fault {
			if a.Fault {
				return -1
			}
			return 1
		}
		return cmp.Or(
			cmp.Compare(slices.Index(r.Files, a.File), slices.Index(r.Files, b.File)),
			cmp.Compare(a.Line, b.Line),
		)
	})
	r.Findings = slices.Compact(r.Findings)
}
