package config

import (
	"slices"
	"strings"
)

// defaultSection is the section of options without one.
const defaultSection = "DEFAULT"

// name identifies an option: its section, normalised, and its name.
type name struct {
	section string
	option  string
}

func (n name) String() string { return "[" + n.section + "] " + n.option }

// option is one entry of the registry. Everything that is known about an option
// is here; the options_*.go files fill it in.
type option struct {
	name
	kind       string        // the type in words, for the sample and the documentation
	def        string        // default as it would be written in a file; "" is unset
	computed   func() string // default found at run time; defNote says what it is
	defNote    string        // replaces the default in the documentation
	help       string
	since      string // release that introduced it; "" is before Zed
	deprecated []name // older names, looked up after the current one
	choices    []string
	minimum    *float64
	maximum    *float64
	secret     bool
	multi      bool // repeated keys add up
	plugin     bool // keystoneauth plugin option: auth_section redirects it
	number     bool // an empty value means "not set", as in oslo.config

	// set converts the values (one, unless multi) and stores the result in
	// the option's field. The error says what the value is instead, and never holds the value.
	set func(values []string) error
	// reset puts the field back to its zero value.
	reset func()
	// format gives Python's str() of the value that set would store; references see it.
	format func(value string) string
	// field is the address of the Config field, for tests.
	field any
}

// section collects the options of one section.
type section struct {
	name     string
	help     string
	registry *registry
}

// registry is the list of options, bound to the fields of one Config.
type registry struct {
	config   *Config
	options  []*option
	byName   map[name]*option
	sections []*section
}

// newRegistry declares every option and binds it to c.
func newRegistry(c *Config) *registry {
	r := &registry{config: c, byName: map[name]*option{}}
	r.defaults()
	r.lxc()
	r.compute()
	r.services()
	r.messaging()
	r.plugging()
	r.consoles()
	return r
}

// section starts a section of the registry.
func (r *registry) section(name, help string) *section {
	s := &section{name: name, help: help, registry: r}
	r.sections = append(r.sections, s)
	return s
}

func (r *registry) of(s *section) []*option {
	var out []*option
	for _, o := range r.options {
		if o.section == s.name {
			out = append(out, o)
		}
	}
	return out
}

func (s *section) add(o *option) *option {
	s.registry.options = append(s.registry.options, o)
	s.registry.byName[o.name] = o
	return o
}

// was adds an older name; section "" is the option's own.
func (o *option) was(section, option string) *option {
	if section == "" {
		section = o.section
	}
	if option == "" {
		option = o.option
	}
	o.deprecated = append(o.deprecated, name{section, option})
	// oslo.config looks for both spellings of an old name with dashes.
	if strings.Contains(option, "-") {
		o.deprecated = append(o.deprecated, name{section, strings.ReplaceAll(option, "-", "_")})
	}
	return o
}

func (o *option) atLeast(v float64) *option { o.minimum = &v; return o }
func (o *option) atMost(v float64) *option  { o.maximum = &v; return o }

// oneOf limits the value, or each item of a list, to the given ones.
func (o *option) oneOf(values ...string) *option { o.choices = values; return o }

// from says which release introduced the option.
func (o *option) from(release string) *option { o.since = release; return o }

// none drops the default: the option is unset unless it is given, and note says what that means.
func (o *option) none(note string) *option {
	o.def, o.defNote = "", note
	return o
}

// found sets a default that is looked up at run time.
func (o *option) found(note string, fn func() string) *option {
	o.defNote, o.computed = note, fn
	return o
}

func (o *option) hasChoice(v string) bool { return o.choices == nil || slices.Contains(o.choices, v) }

// allowed says in words which values the option takes.
func (o *option) allowed() string {
	if o.choices != nil {
		quoted := make([]string, len(o.choices))
		for i, c := range o.choices {
			quoted[i] = c
			if c == "" {
				quoted[i] = "nothing"
			}
		}
		return "allowed: " + strings.Join(quoted, ", ")
	}
	text := "allowed: " + o.kind
	switch {
	case o.minimum != nil && o.maximum != nil:
		text += " from " + number(*o.minimum) + " to " + number(*o.maximum)
	case o.minimum != nil:
		text += ", at least " + number(*o.minimum)
	case o.maximum != nil:
		text += ", at most " + number(*o.maximum)
	}
	return text
}
