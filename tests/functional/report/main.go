// Command report ends a run of tests with a digest of what has failed: of a run of an hour only the end is seen at first, and often only the
// end is kept.
//
//	go run ./tests/functional/report ARGUMENTS-OF-GO-TEST...
//	go run ./tests/functional/report -of FILE
//
// The first runs `go test` and prints what that would. With -v everything is printed as it comes; without, of packages that fail, the output
// of the tests that do. The second reads the events of a run, as `gotestsum --jsonfile` keeps them.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "-of" {
		if err := digestOf(os.Args[2]); err != nil { // which is no failure of the run
			fmt.Fprintln(os.Stderr, "report:", err)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		if _, ended := errors.AsType[*exec.ExitError](err); !ended { // else go test has said why
			fmt.Fprintln(os.Stderr, "report:", err)
		}
		os.Exit(1)
	}
}

func digestOf(file string) error {
	events, err := os.Open(file)
	if err != nil {
		return err
	}
	defer events.Close()
	r := newReport(io.Discard, true)
	err = r.read(events)
	r.out = os.Stdout
	r.digest()
	return err
}

func run(ctx context.Context, args []string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stdin, cmd.Stderr = os.Stdin, os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := newReport(os.Stdout, slices.Contains(args, "-v"))
	err = r.read(events)
	err = errors.Join(cmd.Wait(), err)
	r.digest()
	return err
}

// read takes all events of a run.
func (r *report) read(events io.Reader) error {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			r.line(line)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
