package template

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/flosch/pongo2/v6"
	"golang.org/x/sys/unix"
)

// childCommand is a hidden argument of every binary with this package in it: the
// process renders templates and ends.
const childCommand = "template-render"

// The child leaves here, before main.
func init() {
	if len(os.Args) == 2 && os.Args[1] == childCommand {
		if err := renderJob(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

const (
	// childMemory is what a child may take beyond what it has when it begins.
	childMemory = 256 << 20
	// childStack ends a macro that calls itself.
	childStack = 32 << 20
	// childSeconds of processor time, beside the parent's limit of real time.
	childSeconds = 5
)

// confine gives up what rendering text does not need.
func confine() error {
	size, err := addressSpace()
	if err != nil {
		return err
	}
	for resource, value := range map[int]uint64{
		unix.RLIMIT_AS: size + childMemory, unix.RLIMIT_CPU: childSeconds, unix.RLIMIT_FSIZE: 0, unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: 16,
	} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: value, Max: value}); err != nil {
			return fmt.Errorf("set limit %d: %w", resource, err)
		}
	}
	debug.SetMaxStack(childStack)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	return nil
}

// addressSpace is the size of this process's address space: most of it is reserved, not used.
func addressSpace() (uint64, error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var pages uint64
	if _, err := fmt.Sscan(string(text), &pages); err != nil {
		return 0, fmt.Errorf("read /proc/self/statm: %w", err)
	}
	return pages * uint64(os.Getpagesize()), nil //nolint:gosec // it is positive
}

// renderJob reads a job and writes a line for each of its items.
func renderJob(in io.Reader, out io.Writer) error {
	if err := confine(); err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	var j job
	if err := json.NewDecoder(in).Decode(&j); err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	encoder := json.NewEncoder(out)
	for _, i := range j.Items {
		text, err := renderOne(i, j.Vars)
		r := result{Text: text}
		if err != nil {
			r = result{Error: shorten(err.Error())}
		}
		if err := encoder.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

func shorten(text string) string {
	const most = 500
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}

// fileTags read other files.
var fileTags = []string{"extends", "import", "include", "ssi"}

// renderOne renders one template. The set is new for each: a set remembers.
func renderOne(i item, vars Vars) (string, error) {
	pongo2.SetAutoescape(false) // these are no web pages
	set := pongo2.NewSet("image", noFiles{})
	for _, tag := range fileTags {
		if err := set.BanTag(tag); err != nil {
			return "", err
		}
	}
	parsed, err := set.FromString(i.Text)
	if err != nil {
		return "", err
	}
	out := &boundedText{}
	err = parsed.ExecuteWriterUnbuffered(variables(i, vars), out)
	if out.over { // the library drops errors of writing
		return "", errLong
	}
	if err != nil {
		return "", err
	}
	return out.String(), nil
}

// variables are those that LXD and Incus give: LXD called the instance container.
func variables(i item, vars Vars) pongo2.Context {
	return pongo2.Context{
		"trigger":    i.Trigger,
		"path":       i.Path,
		"instance":   vars.Instance,
		"container":  vars.Instance,
		"config":     vars.Config,
		"devices":    vars.Devices,
		"properties": i.Properties,
		"config_get": func(key, otherwise *pongo2.Value) *pongo2.Value {
			if value, ok := vars.Config[key.String()]; ok {
				return pongo2.AsValue(value)
			}
			return otherwise
		},
	}
}

// noFiles is the loader of a set without files.
type noFiles struct{}

// Abs implements pongo2.TemplateLoader.
func (noFiles) Abs(_, name string) string { return name }

// Get implements pongo2.TemplateLoader.
func (noFiles) Get(string) (io.Reader, error) { return nil, errors.New("templates read no files") }

// boundedText refuses to grow beyond what a file may have.
type boundedText struct {
	bytes.Buffer
	over bool
}

var errLong = fmt.Errorf("makes more than %d bytes", maxText)

// Write implements io.Writer.
func (b *boundedText) Write(p []byte) (int, error) {
	if b.over = b.over || b.Len()+len(p) > maxText; b.over {
		return 0, errLong
	}
	return b.Buffer.Write(p)
}
