package transfer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
)

const (
	// silence is how long a connection may be without a sign of life.
	silence = time.Minute
	// aliveEvery is how often the source shows that it lives while it has nothing to send.
	aliveEvery = 10 * time.Second
	// greetTimeout bounds a connection that has not shown its token.
	greetTimeout = 10 * time.Second
	// maxStrangers bounds the connections that have not.
	maxStrangers = 16
)

// Options configure a Server.
type Options struct {
	Address string // to listen on, and for the other host to come to
	Port    int    // 0: any
	Rate    int64  // bytes a second, all transfers together; 0: no limit
}

// Ticket is what a destination needs to fetch a root disk. It is a secret.
type Ticket struct {
	Address     string `json:"address"`     // host:port
	Certificate string `json:"certificate"` // SHA-256 of the server's, hexadecimal
	ID          string `json:"id"`
	Token       string `json:"token"`
}

// String hides the token.
func (t Ticket) String() string { return "ticket of " + t.ID + " at " + t.Address }

// Source is what a Server offers of an instance: the tree of its root disk, and those of its other disks.
type Source struct {
	IDs   storage.IDRange // of the guest
	Trees []Tree
}

// Tree is one disk's.
type Tree struct {
	// Open makes the tree readable until the returned function is called. last tells that the guest has stopped.
	Open  func(ctx context.Context, last bool) (dir string, done func() error, err error)
	Layer bool // it is an overlay's layer
}

// Server offers root disks. It listens while it has offers, and only then.
type Server struct {
	o     Options
	limit limiter

	mu        sync.Mutex // guards the fields below
	offers    map[string]*Offer
	listener  net.Listener
	cert      string // fingerprint
	stopped   chan struct{}
	strangers int
}

// NewServer returns a server that does nothing yet.
func NewServer(o Options) *Server {
	return &Server{o: o, limit: limiter{rate: o.Rate}, offers: map[string]*Offer{}}
}

// Offer makes a root disk available under an id, in place of what that id offered before,
// until the offer is closed, or its destination has been away for long. The work of its connections ends with ctx.
func (s *Server) Offer(ctx context.Context, id string, src Source) (*Offer, error) {
	token := make([]byte, 32)
	if _, err := rand.Read(token); err != nil {
		return nil, fmt.Errorf("offer root disk: %w", err)
	}
	s.mu.Lock()
	old := s.offers[id]
	s.mu.Unlock()
	if old != nil {
		old.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.listen(context.WithoutCancel(ctx)); err != nil {
		return nil, fmt.Errorf("offer root disk: %w", err)
	}
	had := make([]*manifest, len(src.Trees))
	for i := range had {
		had[i] = newManifest()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	o := &Offer{
		server: s, source: src, ctx: ctx, cancel: cancel, had: had,
		final: make(chan struct{}), finished: make(chan struct{}),
		Ticket: Ticket{Address: s.listener.Addr().String(), Certificate: s.cert, ID: id, Token: hex.EncodeToString(token)},
	}
	s.offers[id] = o
	o.watch.Go(o.expire)
	return o, nil
}

// listen begins to listen if nothing does. s.mu is held.
func (s *Server) listen(ctx context.Context) error {
	if s.listener != nil {
		return nil
	}
	cert, err := newCertificate()
	if err != nil {
		return err
	}
	var config net.ListenConfig
	tcp, err := config.Listen(ctx, "tcp", net.JoinHostPort(s.o.Address, strconv.Itoa(s.o.Port)))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(cert.Certificate[0])
	s.cert = hex.EncodeToString(sum[:])
	s.listener = tls.NewListener(tcp, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	s.stopped = make(chan struct{})
	go s.serve(ctx, s.listener, s.stopped)
	return nil
}

// withdraw ends an offer, and the listening with the last one.
func (s *Server) withdraw(o *Offer) {
	s.mu.Lock()
	if s.offers[o.Ticket.ID] != o {
		s.mu.Unlock()
		return
	}
	delete(s.offers, o.Ticket.ID)
	listener, stopped := s.listener, s.stopped
	if len(s.offers) > 0 {
		listener = nil
	} else {
		s.listener = nil
	}
	s.mu.Unlock()
	if listener != nil {
		_ = listener.Close()
		<-stopped
	}
}

func (s *Server) serve(ctx context.Context, l net.Listener, stopped chan struct{}) {
	var serving sync.WaitGroup
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil {
			reqctx.Log(ctx).WithError(err).Warning("connection for a root disk not accepted")
			time.Sleep(100 * time.Millisecond) //nolint:forbidigo // a full table of descriptors must not become a loop
			continue
		}
		if !s.admit(1) {
			_ = c.Close()
			continue
		}
		serving.Go(func() {
			defer c.Close() //nolint:errcheck // what matters was acknowledged
			s.greet(ctx, c)
		})
	}
	close(stopped)
	serving.Wait()
}

// admit counts the connections that have not shown a token.
func (s *Server) admit(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 && s.strangers >= maxStrangers {
		return false
	}
	s.strangers += n
	return true
}

// greet finds out for which offer a connection came, and serves it.
func (s *Server) greet(ctx context.Context, c net.Conn) {
	o, err := s.recognise(c)
	s.admit(-1)
	if err != nil {
		reqctx.Log(ctx).WithField("peer", c.RemoteAddr().String()).WithError(err).Warning("connection for a root disk refused")
		return
	}
	if err := o.serve(c); err != nil && o.ctx.Err() == nil && !o.complete() { //nolint:contextcheck // the offer has a life of its own
		reqctx.Log(o.ctx).WithError(err).Warning("transfer of a root disk interrupted") //nolint:contextcheck // as above
	}
}

func (s *Server) recognise(c net.Conn) (*Offer, error) {
	if err := c.SetDeadline(time.Now().Add(greetTimeout)); err != nil {
		return nil, err
	}
	cd := newCodec(c)
	k, body, err := cd.read(nil)
	if err != nil {
		return nil, err
	}
	var h hello
	if k != kindHello || json.Unmarshal(body, &h) != nil {
		return nil, errFrame
	}
	s.mu.Lock()
	o := s.offers[h.ID]
	s.mu.Unlock()
	if h.Version != protocolVersion || o == nil || subtle.ConstantTimeCompare([]byte(h.Token), []byte(o.Ticket.Token)) != 1 {
		return nil, errors.Join(errRefused, cd.send(kindRefuse, failure{Reason: errRefused.Error()}))
	}
	if err := cd.send(kindWelcome, struct{}{}); err != nil {
		return nil, err
	}
	return o, c.SetDeadline(time.Time{})
}

// errRefused answers every wrong ticket alike.
var errRefused = errors.New("the ticket is not valid here, or not any more")

// newCertificate makes a key and a certificate for it that nobody signed: the other host
// knows its fingerprint.
func newCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "compute-agent"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
