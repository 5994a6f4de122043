package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/lab"
)

// An operation as the API names it, the status that it leads to, and the method that carries it out.
type operation struct {
	title, action string
	args          any
	status        string
	method        string
}

// In this order they lead back to a server that runs.
var operations = []operation{
	{"pause", "pause", nil, "PAUSED", "pause_instance"},
	{"unpause", "unpause", nil, "ACTIVE", "unpause_instance"},
	{"suspend", "suspend", nil, "SUSPENDED", "suspend_instance"},
	{"resume", "resume", nil, "ACTIVE", "resume_instance"},
	{"stop (kill)", "os-stop", nil, "SHUTOFF", "stop_instance"},
	{"start", "os-start", nil, "ACTIVE", "start_instance"},
	{"reboot, hard", "reboot", map[string]any{"type": "HARD"}, "ACTIVE", "reboot_instance"},
}

// timing is an operation as the agent logged it.
type timing struct{ elapsed, own time.Duration }

// operationTimes runs every operation so often on a server of l, whose agent does not wait for a guest to end.
func operationTimes(ctx context.Context, l *lab.Lab, rounds int) (map[string][]timing, error) {
	b := bench{l}
	b.Plane.Say("%d times each: %d operations", rounds, len(operations))
	id, _, err := b.bootOf(ctx, b.Busybox, b.Nano, l.Host)
	if err != nil {
		return nil, err
	}
	_, from, err := l.Agent.Log(0)
	if err != nil {
		return nil, err
	}
	for range rounds {
		for _, op := range operations {
			if err := b.act(ctx, id, op); err != nil {
				return nil, fmt.Errorf("%s: %w", op.title, err)
			}
		}
	}
	times, err := loggedTimes(l, from)
	return times, errors.Join(err, b.remove(ctx, id))
}

func (b bench) act(ctx context.Context, id string, op operation) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := b.Admin.Action(ctx, id, op.action, op.args, nil); err != nil {
		return err
	}
	_, err := b.Admin.WaitStatus(ctx, id, op.status)
	return err
}

var doneLine = regexp.MustCompile(`msg="operation done".* elapsed_ms=(\d+) .*method=(\w+) own_ms=(\d+)`)

// loggedTimes are the operations in an agent's log from an offset on, by method.
func loggedTimes(l *lab.Lab, from int64) (map[string][]timing, error) {
	log, _, err := l.Agent.Log(from)
	if err != nil {
		return nil, err
	}
	times := map[string][]timing{}
	for line := range strings.Lines(log) {
		m := doneLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		elapsed, elapsedErr := strconv.Atoi(m[1])
		own, ownErr := strconv.Atoi(m[3])
		if err := errors.Join(elapsedErr, ownErr); err != nil {
			return nil, err
		}
		times[m[2]] = append(times[m[2]], timing{time.Duration(elapsed) * time.Millisecond, time.Duration(own) * time.Millisecond})
	}
	return times, nil
}

// snapshots are images of a server that runs Debian, beside tar and zstd on the same root disk: packed only, and packed
// and sent to Glance as the agent does. They take turns.
type snapshots struct {
	megabytes            int
	agent, packed, piped []time.Duration
}

func snapshotTimes(ctx context.Context, l *lab.Lab, rounds int) (snapshots, error) {
	b := bench{l}
	var s snapshots
	b.Plane.Say("%d images of a Debian server", rounds)
	id, _, err := b.boot(ctx, l.Host)
	if err != nil {
		return s, err
	}
	used, err := l.Agent.Exec(ctx, id, "sh", "-c", "du -sxm / | cut -f1")
	if err != nil {
		return s, err
	}
	if s.megabytes, err = strconv.Atoi(strings.TrimSpace(used)); err != nil {
		return s, err
	}
	for range rounds {
		took, err := b.tarAndZstd(ctx, id, func(archive io.Reader) error {
			_, err := io.Copy(io.Discard, archive)
			return err
		})
		if err != nil {
			return s, err
		}
		s.packed = append(s.packed, took)
		var image string
		took, err = b.tarAndZstd(ctx, id, func(archive io.Reader) (err error) {
			image, err = b.Admin.UploadImage(ctx, "bench-tar", "raw", nil, archive)
			return err
		})
		if err != nil {
			return s, err
		}
		s.piped = append(s.piped, took)
		if err := b.Admin.DeleteImage(ctx, image); err != nil {
			return s, err
		}
		if took, err = b.image(ctx, id); err != nil {
			return s, err
		}
		s.agent = append(s.agent, took)
	}
	return s, b.remove(ctx, id)
}

// image makes an image of a server and returns how long the agent took, the upload to Glance with it.
func (b bench) image(ctx context.Context, id string) (time.Duration, error) {
	_, from, err := b.Agent.Log(0)
	if err != nil {
		return 0, err
	}
	var made struct {
		ImageID string `json:"image_id"`
	}
	if err := b.Admin.Action(ctx, id, "createImage", map[string]any{"name": "bench"}, &made); err != nil {
		return 0, err
	}
	var took time.Duration
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err = cloud.Poll(ctx, 100*time.Millisecond, "image of the server", func() (bool, error) {
		times, err := loggedTimes(b.Lab, from)
		if done := times["snapshot_instance"]; len(done) > 0 {
			took = done[0].elapsed
		}
		return took > 0, err
	})
	return took, errors.Join(err, b.Admin.DeleteImage(ctx, made.ImageID))
}

// tarAndZstd packs a server's root disk with the two programs, for whoever takes the archive, and returns how long that took.
func (b bench) tarAndZstd(ctx context.Context, id string, take func(archive io.Reader) error) (time.Duration, error) {
	// A server that runs changes files while tar reads them, of which tar tells by a status of 1.
	tar := b.Agent.ExecCommand(ctx, id, "sh", "-c", "tar --one-file-system -C / -c . || test $? = 1")
	zstd := exec.CommandContext(ctx, "zstd", "-q", "-c")
	var err error
	if zstd.Stdin, err = tar.StdoutPipe(); err != nil {
		return 0, err
	}
	archive, err := zstd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := errors.Join(tar.Start(), zstd.Start()); err != nil {
		return 0, err
	}
	err = take(archive)
	err = errors.Join(err, zstd.Wait(), tar.Wait())
	return time.Since(began), err
}

func printOperations(out io.Writer, times map[string][]timing, s snapshots) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\noperation\town, median\town, worst\twith the control plane, median")
	for _, op := range operations {
		seen := times[op.method]
		if len(seen) == 0 {
			return fmt.Errorf("the agent logged no %s", op.method)
		}
		var own, elapsed []time.Duration
		for _, t := range seen {
			own, elapsed = append(own, t.own), append(elapsed, t.elapsed)
		}
		fmt.Fprintf(w, "%s\t%d ms\t%d ms\t%d ms\n", op.title, median(own).Milliseconds(), slices.Max(own).Milliseconds(), median(elapsed).Milliseconds())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(s.agent) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(out, "\nimage of a %d MB root disk, sent to Glance: %s; tar | zstd sent to Glance: %s; tar | zstd alone: %s (medians of %d)\n",
		s.megabytes, seconds(median(s.agent)), seconds(median(s.piped)), seconds(median(s.packed)), len(s.agent))
	return err
}
