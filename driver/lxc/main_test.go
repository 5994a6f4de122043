package lxc

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain lets the test binary play the hidden sub-commands, as the agent's does.
func TestMain(m *testing.M) {
	if handled, code := ChildMain(os.Args[1:]); handled {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}
