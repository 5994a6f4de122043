package pack

import (
	"bufio"
	"io"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newBuffered(w io.Writer) *bufio.Writer { return bufio.NewWriter(w) }
