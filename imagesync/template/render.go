package template

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	// renderTimeout bounds the rendering of all templates of a guest: real ones take a millisecond.
	renderTimeout = 5 * time.Second
	// nobody is whom the child runs as when the agent is root.
	nobody = 65534
)

// job is what the child reads.
type job struct {
	Vars  Vars   `json:"vars"`
	Items []item `json:"items"`
}

// result is what the child writes for one item, in their order.
type result struct {
	Text  string `json:"text"`
	Error string `json:"error,omitempty"`
}

// render renders all items in one child, within limit. An item that ends the child is left with an
// error, as are those after it.
func render(ctx context.Context, items []item, vars Vars, limit time.Duration) ([]result, error) {
	if len(items) == 0 {
		return nil, nil
	}
	input, err := json.Marshal(job{vars, items})
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(limited, "/proc/self/exe", childCommand)
	cmd.Env = []string{"GOMAXPROCS=2", "GOTRACEBACK=none"}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(input)
	cmd.WaitDelay = time.Second
	stderr := &lastWords{}
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start child: %w", err)
	}
	results, readErr := readResults(stdout, len(items))
	if readErr != nil {
		cancel() // it may wait for somebody to read
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("run child: %w", err)
	}
	var reason string
	switch {
	case len(results) == len(items):
		return results, nil
	case errors.Is(limited.Err(), context.DeadlineExceeded):
		reason = fmt.Sprintf("not rendered within %s", limit)
	case readErr != nil:
		reason = "not rendered: " + readErr.Error()
	default:
		reason = "not rendered: the child that renders it has died: " + stderr.String()
	}
	for len(results) < len(items) {
		results = append(results, result{Error: reason})
		reason = "not rendered: one before it could not be"
	}
	return results, nil
}

// readResults reads one line for each item, none larger than an item may become.
func readResults(r io.Reader, items int) ([]result, error) {
	const longest = 6*maxText + 4096 // JSON makes six bytes of one
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), longest)
	var results []result
	for len(results) < items && lines.Scan() {
		var one result
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			return results, fmt.Errorf("read answer: %w", err)
		}
		results = append(results, one)
	}
	return results, lines.Err()
}

// lastWords keeps the first line of what the child says when it dies.
type lastWords struct{ text bytes.Buffer }

// Write implements io.Writer.
func (l *lastWords) Write(p []byte) (int, error) {
	if room := 300 - l.text.Len(); room > 0 {
		l.text.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// String gives the line.
func (l *lastWords) String() string {
	line, _, _ := strings.Cut(strings.TrimSpace(l.text.String()), "\n")
	if line == "" {
		return "killed"
	}
	return line
}
