package functest

import (
	"os"
	"testing"
)

// RenameUntilEnd renames a file to and fro until the test ends, for what has to bear renames anywhere on the host.
func RenameUntilEnd(t testing.TB, one, other string) {
	t.Helper()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.Rename(one, other)
				one, other = other, one
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
	})
}
