// Package functest is what functional tests of several packages share.
package functest

import (
	"os"
	"testing"
)

// Need fails or skips a test that cannot run here: COMPUTE_AGENT_FUNCTIONAL=1 says that it must.
func Need(t testing.TB, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("COMPUTE_AGENT_FUNCTIONAL") == "1" {
		t.Fatalf("this test needs %s", what)
	}
	t.Skipf("this test needs %s", what)
}
