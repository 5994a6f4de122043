// Package console gives users what a guest writes on its console, and the way to the console itself.
package console

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/rpc"
)

// MaxBytes bounds what a console log call reads; nova's libvirt driver has the
// same bound (virt/libvirt/driver.py:MAX_CONSOLE_BYTES).
const MaxBytes = 100 << 10

// Output returns the end of a guest's console, running or stopped
// (nova/compute/manager.py:get_console_output).
func Output(ctx context.Context, d driver.Driver, inst *object.Instance, args rpc.Args) (string, error) {
	lines, all := tailLength(args)
	log, err := d.ConsoleLog(ctx, inst.UUID, MaxBytes)
	switch {
	case errors.Is(err, driver.ErrNotFound) && inst.VMState == object.VMStateBuilding:
		return "", exception.InstanceNotReady(inst.UUID)
	case errors.Is(err, driver.ErrNotFound):
		return "", exception.ConsoleNotAvailable()
	case err != nil:
		return "", err
	}
	text := asciiText(log)
	if all {
		return text, nil
	}
	return lastLines(text, lines), nil
}

// tailLength reads tail_length, which comes as the API's client gave it: null, an
// integer, or a string of digits. What is no number is 0, as in nova-compute; a negative
// one, which the API lets through as -1 only, means everything.
func tailLength(args rpc.Args) (lines int, all bool) {
	raw, ok := args["tail_length"]
	if !ok || string(raw) == "null" {
		return 0, true
	}
	text := string(raw)
	if json.Unmarshal(raw, &text) != nil {
		text = string(raw)
	}
	lines, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return 0, false
	}
	return lines, lines < 0
}

// lastLines is nova's _tail_log: the last n pieces between newlines.
func lastLines(text string, n int) string {
	if n == 0 {
		return ""
	}
	pieces := strings.Split(text, "\n")
	if len(pieces) > n {
		pieces = pieces[len(pieces)-n:]
	}
	return strings.Join(pieces, "\n")
}

// asciiText replaces what is not ASCII by U+FFFD, as nova-compute does: the API's
// clients get the same text from any driver.
func asciiText(b []byte) string {
	var out strings.Builder
	out.Grow(len(b))
	for _, c := range b {
		if c < 0x80 {
			out.WriteByte(c)
		} else {
			out.WriteRune('\uFFFD')
		}
	}
	return out.String()
}
