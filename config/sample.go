package config

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
)

// WriteSample writes a configuration file with every option of the registry,
// commented out and with its default. etc/compute-agent.conf.sample is its output.
func WriteSample(w io.Writer) error {
	var b bytes.Buffer
	b.WriteString(`# Sample configuration of compute-agent, made from its option registry by
# "compute-agent config sample". Every option is commented out and shows its default.
#
# The agent reads nova-compute's files first, so that an existing nova.conf works
# as it is; put here what is the agent's own or differs. Order, later wins:
`)
	for _, f := range append(DefaultFiles(), DefaultDirs()...) {
		fmt.Fprintf(&b, "#   %s\n", f+map[bool]string{true: "/*.conf"}[strings.HasSuffix(f, ".d")])
	}
	b.WriteString(`#   files and directories given by --config-file and --config-dir, in their order
#   (--config-file replaces the three files, --config-dir the three directories)
#   the environment: OS_<SECTION>__<OPTION>
#
# A "#" starts a comment in the first column only. A value may refer to another:
# $option, ${option}, $section.option; $$ is a dollar sign.
`)
	r := newRegistry(&Config{})
	for _, s := range r.sections {
		fmt.Fprintf(&b, "\n\n[%s]\n", s.name)
		comment(&b, s.help)
		for _, o := range r.of(s) {
			b.WriteString("\n")
			comment(&b, o.help)
			comment(&b, o.facts())
			fmt.Fprintf(&b, "#%s\n", strings.TrimSpace(o.option+" = "+o.def))
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// facts gives type, limits, a default that the sample line cannot show, and older names.
func (o *option) facts() string {
	text := strings.ToUpper(o.allowed()[:1]) + o.allowed()[1:] + "."
	if o.defNote != "" {
		text += " Default: " + o.defNote + "."
	}
	if o.since != "" {
		text += " Since " + o.since + "."
	}
	if len(o.deprecated) > 0 {
		text += " Older names: " + o.olderNames() + "."
	}
	return text
}

func (o *option) olderNames() string {
	var names []string
	for _, d := range o.deprecated {
		if d.section == o.section {
			names = append(names, d.option)
		} else {
			names = append(names, d.String())
		}
	}
	return strings.Join(names, ", ")
}

// sampleWidth is where comment lines of the sample are broken.
const sampleWidth = 100

// comment writes text as comment lines.
func comment(b *bytes.Buffer, text string) {
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > sampleWidth && line != "#" {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
}

// WriteDocs writes the reference of all options in Markdown. docs/options.md is its output.
func WriteDocs(w io.Writer) error {
	var b bytes.Buffer
	b.WriteString(`# Options

Made from the option registry by ` + "`compute-agent config sample --markdown`" + `; do not edit.

The agent reads the files that nova-compute reads, with the same grammar (oslo.config's), sections, names and
defaults, and its own options in section [lxc]. Order of reading, later wins:

`)
	for i, f := range append(DefaultFiles(), DefaultDirs()...) {
		fmt.Fprintf(&b, "%d. `%s`\n", i+1, f+map[bool]string{true: "/*.conf"}[strings.HasSuffix(f, ".d")])
	}
	b.WriteString(`7. files and directories given by ` + "`--config-file` and `--config-dir`" + `, in their order on the command line;
   ` + "`--config-file`" + ` replaces 1 to 3, ` + "`--config-dir`" + ` replaces 4 to 6
8. the environment: ` + "`OS_<SECTION>__<OPTION>`" + `
9. values given on the command line

A wrong value stops the start and names file, line, option and what is allowed; all of them are reported together.
An unknown option is a warning in [lxc] and ignored elsewhere. An empty number stands for the default.
"Since" is the Nova release that introduced the option; the agent takes it with any control plane.
`)
	r := newRegistry(&Config{})
	for _, s := range r.sections {
		fmt.Fprintf(&b, "\n## [%s]\n\n%s\n\n| option | type | default | meaning |\n|---|---|---|---|\n", s.name, s.help)
		for _, o := range r.of(s) {
			b.WriteString(o.row())
		}
	}
	b.WriteString("\n## Accepted and without effect\n\nOptions of nova-compute, and of services that share its file, that mean nothing to containers or to this agent.\n\n")
	b.WriteString("| section | options |\n|---|---|\n")
	ignored := accepted()
	for _, s := range sortedKeys(ignored) {
		options := strings.Join(ignored[s], ", ")
		switch {
		case ignored[s] == nil && r.has(s):
			options = "all others"
		case ignored[s] == nil:
			options = "all"
		}
		fmt.Fprintf(&b, "| [%s] | %s |\n", s, options)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// row is the option's line of the documentation's table.
func (o *option) row() string {
	def := "unset"
	if o.def != "" {
		def = "`" + o.def + "`"
	}
	if o.defNote != "" {
		def = o.defNote
	}
	help := o.help
	if o.since != "" {
		help += " Since " + o.since + "."
	}
	if len(o.deprecated) > 0 {
		help += " Older names: " + o.olderNames() + "."
	}
	if o.secret {
		help += " Secret: never shown."
	}
	kind := strings.TrimPrefix(o.allowed(), "allowed: ")
	cells := []string{"`" + o.option + "`", kind, def, help}
	for i, c := range cells {
		cells[i] = strings.ReplaceAll(c, "|", `\|`)
	}
	return "| " + strings.Join(cells, " | ") + " |\n"
}

// has tells whether the registry has options of a section.
func (r *registry) has(section string) bool {
	return slices.ContainsFunc(r.options, func(o *option) bool { return o.section == section })
}

func sortedKeys(m map[string][]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
