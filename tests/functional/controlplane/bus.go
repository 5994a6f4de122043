package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// amqp is a command line of the helper that speaks AMQP.
func (p *Plane) amqp(ctx context.Context, args ...string) *exec.Cmd {
	line := append([]string{"/usr/bin/python3", "/etc/lab/bus.py", strings.Replace(TransportURL(), "rabbit:", "amqp:", 1)}, args...)
	return p.chrootCommand(ctx, "root", nil, line...)
}

// waitQueue waits until somebody consumes the queue.
func (p *Plane) waitQueue(ctx context.Context, queue string) error {
	_, err := capture(p.amqp(ctx, "wait", queue, strconv.Itoa(int(patience.Seconds()))), "wait for queue "+queue)
	return err
}

// Publish puts a message on the bus as it is.
func (p *Plane) Publish(ctx context.Context, exchange, key, body string) error {
	cmd := p.amqp(ctx, "publish", exchange, key)
	cmd.Stdin = strings.NewReader(body)
	_, err := capture(cmd, "publish to "+key)
	return err
}

// Message is one message that was published while a Trace ran. Fields that a message has not are "".
type Message struct {
	Time      float64 `json:"t"` // seconds since the epoch, at the consumer
	Exchange  string
	Key       string // routing key
	Method    string
	MsgID     string `json:"msg_id"`
	Object    string `json:"objname"`   // class, of a conductor's object call
	Operation string `json:"objmethod"` // its method
	Event     string `json:"event_type"`
	Publisher string
	Priority  string          // of notifications, as their payload
	Payload   json.RawMessage //
}

// Trace records every message that is published on the bus, by RabbitMQ's firehose. Close it.
type Trace struct {
	plane *Plane
	cmd   *exec.Cmd
	file  string // in the chroot
}

// Trace starts a record. It goes on until Stop, whatever becomes of ctx.
func (p *Plane) Trace(ctx context.Context) (*Trace, error) {
	if _, err := p.Rabbitctl(ctx, "trace_on"); err != nil {
		return nil, err
	}
	t := &Trace{plane: p, file: "/root/trace.jsonl"}
	t.cmd = p.amqp(context.WithoutCancel(ctx), "trace", t.file)
	out, err := t.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := t.cmd.Start(); err != nil {
		return nil, err
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("trace the bus: %q: %w", line, err), t.end(ctx))
	}
	return t, nil
}

// Stop ends the record and returns what was seen, in order.
func (t *Trace) Stop(ctx context.Context) ([]Message, error) {
	time.Sleep(300 * time.Millisecond) // what was published last is on its way
	if err := t.end(ctx); err != nil {
		return nil, err
	}
	return t.Seen()
}

// Seen returns what was seen so far, in order.
func (t *Trace) Seen() ([]Message, error) {
	text, err := os.ReadFile(t.plane.inRoot(t.file))
	if err != nil {
		return nil, err
	}
	text = text[:bytes.LastIndexByte(text, '\n')+1] // a line may be in the making
	var messages []Message
	for line := range bytes.Lines(text) {
		var m Message
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("read trace: %w", err)
		}
		messages = append(messages, m)
	}
	return messages, nil
}

func (t *Trace) end(ctx context.Context) error {
	err := t.cmd.Process.Kill()
	_ = t.cmd.Wait() // says that it was killed
	_, off := t.plane.Rabbitctl(context.WithoutCancel(ctx), "trace_off")
	return errors.Join(err, off)
}

// Answer is what one RPC method of a compute host answered to a call without arguments.
type Answer struct {
	Method  string
	Seconds float64
	Error   string // class of the exception, "" for a result; MessagingTimeout when nothing came
}

// CallEveryMethod calls each method that nova's own client knows, without arguments.
func (p *Plane) CallEveryMethod(ctx context.Context, hostname string, limit time.Duration) ([]Answer, error) {
	cmd := p.chrootCommand(ctx, "root", nil, "/usr/bin/python3", "/etc/lab/rpc.py", TransportURL(), hostname,
		strconv.FormatFloat(limit.Seconds(), 'f', -1, 64))
	text, err := capture(cmd, "call every method")
	if err != nil {
		return nil, err
	}
	var answers []Answer
	for line := range strings.Lines(text) {
		var a Answer
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			return nil, fmt.Errorf("read answer %q: %w", line, err)
		}
		answers = append(answers, a)
	}
	return answers, nil
}
