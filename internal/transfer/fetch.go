package transfer

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
)

const (
	// patience is how long the source may be out of reach before a transfer is given up.
	patience = 2 * time.Minute
	// retryPause is the time between attempts to reach it.
	retryPause  = time.Second
	dialTimeout = 10 * time.Second
	// quickPass: a pass that is done sooner leaves so little to the last one that another would not help.
	quickPass = 10 * time.Second
	maxPasses = 4
)

// Target is where the trees of a Source go.
type Target struct {
	IDs  storage.IDRange
	Dirs []TargetDir // as many as the Source has trees; none: the source has nothing to send, and tells only that its guest has stopped
}

// TargetDir is where one tree goes.
type TargetDir struct {
	Path  string // exists; nobody else uses it
	Layer bool   // as in Tree
}

// Fetch are an instance's disks on their way to this host. It is used by one goroutine.
type Fetch struct {
	ticket Ticket
	trees  []*receiver
	r      *receiver // of the tree that comes now
	buf    []byte    // of a frame
	raw    net.Conn
	c      *codec
}

// NewFetch begins a transfer; nothing is sent before the first pass. Close it.
func NewFetch(t Ticket, target Target) (*Fetch, error) {
	f := &Fetch{ticket: t, buf: make([]byte, chunk+8)}
	for _, dir := range target.Dirs {
		r, err := newReceiver(dir.Path, target.IDs, dir.Layer, f.buf)
		if err != nil {
			f.Close(nil)
			return nil, err
		}
		f.trees = append(f.trees, r)
	}
	return f, nil
}

// Running copies the tree while its guest runs, again and again until what has changed
// meanwhile is little.
func (f *Fetch) Running(ctx context.Context) error {
	for n := 1; ; n++ {
		began := time.Now()
		if err := f.run(ctx, kindPass); err != nil {
			return err
		}
		if time.Since(began) < quickPass || n == maxPasses {
			return nil
		}
	}
}

// Last waits until the guest has stopped and copies what has changed.
func (f *Fetch) Last(ctx context.Context) error { return f.run(ctx, kindLast) }

// Close ends the transfer; it may be repeated. A cause is told to the source, which gives up then, too.
func (f *Fetch) Close(cause error) {
	if cause != nil {
		f.tell(cause)
	}
	f.hangUp()
	for _, r := range f.trees {
		r.close()
	}
}

func (f *Fetch) hangUp() {
	if f.raw != nil {
		_ = f.raw.Close()
	}
	f.raw, f.c = nil, nil
}

// localError is a failure of this host's disk, or of what the other host means to send:
// another connection would meet it again.
type localError struct{ error }

// Unwrap gives the failure itself.
func (e *localError) Unwrap() error { return e.error }

// run makes one pass, over as many connections as it needs.
func (f *Fetch) run(ctx context.Context, k kind) error {
	last := time.Now()
	for {
		applied, err := f.attempt(ctx, k)
		if err == nil {
			return nil
		}
		f.drop(err)
		var local *localError
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &local), errors.Is(err, errRefused), errors.Is(err, ErrAborted):
			return err
		}
		if applied > 0 {
			last = time.Now()
		}
		if time.Since(last) > patience {
			return fmt.Errorf("source not reached for %s: %w", patience, err)
		}
		reqctx.Log(ctx).WithError(err).Warning("transfer of a root disk interrupted; going on with a new connection")
		timer := time.NewTimer(retryPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// drop ends a connection that is of no more use; the source hears why if that is this host's doing.
func (f *Fetch) drop(err error) {
	if _, local := errors.AsType[*localError](err); local {
		f.tell(err)
	}
	f.hangUp()
}

// tell says why this host gives up, and waits for the source to hang up: a connection that is closed while
// the other end still sends is reset, and the message with it.
func (f *Fetch) tell(cause error) {
	if f.raw == nil {
		return
	}
	if f.c.send(kindFail, failure{Reason: cause.Error()}) != nil {
		return
	}
	for end := time.Now().Add(dialTimeout); time.Now().Before(end); {
		if _, _, err := f.c.read(f.buf); err != nil {
			if _, broken := errors.AsType[*wireError](err); broken {
				return
			}
		}
	}
}

func (f *Fetch) attempt(ctx context.Context, k kind) (applied int, err error) {
	if f.raw == nil {
		if err := f.connect(ctx); err != nil {
			return 0, err
		}
	}
	// The connection outlives the call, but does not hold it when it is to end.
	raw := f.raw
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	if err := f.c.send(k, struct{}{}); err != nil {
		return 0, err
	}
	return f.consume(ctx, k)
}

// consume applies what comes until the end of the pass.
func (f *Fetch) consume(ctx context.Context, k kind) (applied int, err error) {
	began := time.Now()
	var seq uint64
	if len(f.trees) > 0 {
		f.r = f.trees[0]
	}
	for {
		kind, body, err := f.c.read(f.buf)
		if err != nil {
			return applied, err
		}
		switch kind {
		case kindEntry:
			if f.r == nil {
				return applied, &localError{fmt.Errorf("%w: an entry, and no tree is expected", errFrame)}
			}
			e := &entry{}
			if err := json.Unmarshal(body, e); err != nil {
				return applied, &localError{fmt.Errorf("%w: %w", errFrame, err)}
			}
			if err := f.r.apply(e, f.c); err != nil {
				return applied, blame(err)
			}
			applied++
			seq = e.Seq
			if applied%ackEvery == 0 {
				if err := f.acknowledge(seq); err != nil {
					return applied, err
				}
			}
		case kindTree:
			if len(body) != 1 || int(body[0]) >= len(f.trees) {
				return applied, &localError{fmt.Errorf("%w: tree %v of %d", errFrame, body, len(f.trees))}
			}
			f.r = f.trees[body[0]]
		case kindDone:
			return applied, f.conclude(ctx, seq, k, body, began)
		case kindAlive:
			if err := f.c.send(kindAlive, struct{}{}); err != nil {
				return applied, err
			}
		case kindRefuse:
			return applied, refusal(body)
		default:
			return applied, &localError{fmt.Errorf("%w: %q between entries", errFrame, kind)}
		}
	}
}

// blame tells a broken connection from a failure of this host.
func blame(err error) error {
	if _, broken := errors.AsType[*wireError](err); broken {
		return err
	}
	return &localError{err}
}

func refusal(body []byte) error {
	var why failure
	if json.Unmarshal(body, &why) != nil || why.Reason == errRefused.Error() {
		return errRefused
	}
	return fmt.Errorf("%w: %s", ErrAborted, why.Reason)
}

// conclude acknowledges a pass only when it is on disk: an ext4 file system in a sparse file
// hears of a full host when it writes back.
func (f *Fetch) conclude(ctx context.Context, seq uint64, k kind, body []byte, began time.Time) error {
	var count passed
	if err := json.Unmarshal(body, &count); err != nil {
		return &localError{errFrame}
	}
	if len(f.trees) > 0 && f.r != f.trees[len(f.trees)-1] {
		return &localError{fmt.Errorf("%w: fewer trees than %d", errFrame, len(f.trees))}
	}
	for _, r := range f.trees {
		r.leave()
		if err := r.sync(); err != nil {
			return &localError{err}
		}
	}
	if err := f.acknowledge(seq); err != nil {
		return err
	}
	reqctx.Log(ctx).WithField("last", k == kindLast).WithField("entries", count.Entries).WithField("bytes", count.Bytes).
		WithField("elapsed_ms", time.Since(began).Milliseconds()).Info("root disk received")
	return nil
}

func (f *Fetch) acknowledge(seq uint64) error {
	var body [8]byte
	binary.BigEndian.PutUint64(body[:], seq)
	if err := f.c.write(kindAck, body[:]); err != nil {
		return err
	}
	return f.c.flush()
}

// connect opens a connection to the host whose certificate the ticket names, and shows the token.
func (f *Fetch) connect(ctx context.Context) error {
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Nobody signs the certificate: it is compared with the ticket's, which came over the message bus.
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection below
		VerifyConnection:   f.ticket.verify,
	}}
	raw, err := dialer.DialContext(ctx, "tcp", f.ticket.Address)
	if err != nil {
		return err
	}
	f.raw = raw
	f.c = newCodec(&conn{Conn: raw, silence: silence})
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	err = f.c.send(kindHello, hello{Version: protocolVersion, ID: f.ticket.ID, Token: f.ticket.Token})
	if err != nil {
		return err
	}
	k, body, err := f.c.read(nil)
	switch {
	case err != nil:
		return err
	case k == kindRefuse:
		return refusal(body)
	case k != kindWelcome:
		return errFrame
	}
	return nil
}

// verify compares the server's certificate with the ticket's.
func (t Ticket) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return &localError{errors.New("the source shows no certificate")}
	}
	sum := sha256.Sum256(state.PeerCertificates[0].Raw)
	if subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(t.Certificate)) != 1 {
		return &localError{errors.New("the source's certificate is not the ticket's")}
	}
	return nil
}
