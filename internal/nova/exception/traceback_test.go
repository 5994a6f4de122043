package exception

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/rpc"
)

// odd is an error whose type is no operator's business.
type odd struct{ error }

func (o *odd) Unwrap() error { return o.error }

func TestTraceback(t *testing.T) {
	t.Parallel()
	boom, gone := errors.New("boom"), errors.New("bridge is gone")
	refused := New("NotImplementedError", nil)
	refused.Module, refused.Message = ModuleBuiltins, "volume attach is not supported by the lxc driver"
	remote := &rpc.Failure{Class: "PortNotFound", Module: ModuleNova, Message: "Port p could not be found.", Traceback: []string{"Traceback: /secret\n"}}
	hidden := VirtualInterfaceCreate()
	const hiddenLine = "nova.exception.VirtualInterfaceCreateException: Virtual Interface creation failed"
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"none":           {nil, ""},
		"plain":          {boom, "boom"},
		"wrapped":        {fmt.Errorf("stop guest: %w", fmt.Errorf("kill: %w", &odd{boom})), "stop guest: kill: boom"},
		"builtin":        {refused, "NotImplementedError: volume attach is not supported by the lxc driver"},
		"no message":     {NotImplemented(""), "NotImplementedError"},
		"remote":         {fmt.Errorf("save: %w", remote), "nova.exception.PortNotFound: save: PortNotFound: Port p could not be found."},
		"cause repeated": {BuildAbort("u", "boom").Because(&odd{boom}), "nova.exception.BuildAbortException: Build of instance u aborted: boom"},
		"cause hidden": {
			hidden.Because(fmt.Errorf("plug port p: %w", &fs.PathError{Op: "open", Path: "/sys/br", Err: gone})),
			hiddenLine + "\nbecause: plug port p: open /sys/br: bridge is gone",
		},
		"cause of a cause": {
			BuildAbort("u", "no network").Because(hidden.Because(gone)),
			"nova.exception.BuildAbortException: Build of instance u aborted: no network\nbecause: " + hiddenLine + "\nbecause: bridge is gone",
		},
		"class of a cause": {
			BuildAbort("u", ImageNotFound("i").Error()).Because(ImageNotFound("i")),
			"nova.exception.BuildAbortException: Build of instance u aborted: Image i could not be found.\n" +
				"because: nova.exception.ImageNotFound: Image i could not be found.",
		},
		"several": {
			hidden.Because(errors.Join(fmt.Errorf("unplug: %w", gone), hidden.Because(boom), remote)),
			hiddenLine + "\nbecause: unplug: bridge is gone\nand: boom\nand: nova.exception.PortNotFound: Port p could not be found.",
		},
		"several that are told": {fmt.Errorf("%w; not removed: %w", boom, gone), "boom; not removed: bridge is gone"},
		"first of several":      {errors.Join(boom, fmt.Errorf("tell: %w", remote)), "nova.exception.PortNotFound: boom; tell: PortNotFound: Port p could not be found."},
		"lines":                 {BuildAbort("u", "x").Because(errors.New("one\r\ntwo\x1b[31m\n\nthree")), "nova.exception.BuildAbortException: Build of instance u aborted: x\nbecause: one; two [31m; three"},
	} {
		if diff := cmp.Diff(c.want, Traceback(c.err)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestTracebackBounds: whatever an error has to say, a column takes it.
func TestTracebackBounds(t *testing.T) {
	t.Parallel()
	err := error(BuildAbort("u", strings.Repeat("é", 1<<17)))
	for i := range 100 {
		err = BuildAbort(strconv.Itoa(i), strings.Repeat("é", 1<<10)).Because(err)
	}
	got := Traceback(err)
	if lines := strings.Count(got, "\n") + 1; len(got) > 1<<16-1 || lines != maxCauses+1 {
		t.Errorf("%d bytes, %d lines", len(got), lines)
	}
}
